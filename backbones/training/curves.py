"""Curves of a run: read from `curves.csv`, drawn as a picture."""

import csv
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from backbones.common.errors import UserError
from backbones.common.plots import new_plot, save_plot

COLUMNS = ("step", "epoch", "name", "value")

NOT_DRAWN = ("score_thresh",)
"""Metrics beside scores that are none: where a detector's F1 is best is neither good nor bad."""


class CurvePoint(NamedTuple):
    """One value of one curve: `name` is `group/metric`, `epoch` counts passes, fractions too."""

    step: int
    epoch: float
    name: str
    value: float


def read_curves(path: Path) -> list[CurvePoint]:
    """The rows of a `curves.csv`, none where it is missing; a last row cut short is left out.
    Raises `UserError` where it cannot be read, or another row is none."""
    if not os.path.exists(path):
        return []
    points = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        number = 1
        if line := next((line for line in lines[:1] if line.strip() != ",".join(COLUMNS)), ""):
            raise ValueError
        for number, line in enumerate(lines[1:], start=2):
            if number == len(lines) and not line.endswith("\n"):
                break
            step, epoch, name, value = next(csv.reader([line]))
            points.append(CurvePoint(int(step), float(epoch), name, float(value)))
    except OSError as error:
        raise UserError(f"{path}: cannot read curves: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text, got other bytes") from error
    except (ValueError, StopIteration, csv.Error) as error:
        columns = ",".join(COLUMNS)
        raise UserError(f"{path}, line {number}: expected {columns}, got {line[:60]!r}") from error
    return points


def draw_curves(points: list[CurvePoint], path: Path) -> None:
    """Draw one panel for each group of curves (the part of the name before `/`) into a PNG, without
    those of `NOT_DRAWN`."""
    groups: dict[str, dict[str, list[CurvePoint]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        group, _, metric = point.name.partition("/")
        if metric not in NOT_DRAWN:
            groups[group][metric or group].append(point)
    if not groups:
        return
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    plot = new_plot(7.5 * columns, 3.4 * rows)
    panels = plot.subplots(rows, columns, squeeze=False).flat
    for panel, (group, curves) in zip(panels, groups.items(), strict=False):
        for metric, curve in curves.items():
            epochs = [point.epoch for point in curve]
            values = [point.value for point in curve]
            marker = "o" if len(curve) < 30 else ""
            # A single point has no line to be seen by.
            panel.plot(
                *(epochs, values),
                marker=marker,
                markersize=7 if len(curve) == 1 else 3,
                label=f"{metric} {values[-1]:.4g}",
            )
        panel.set_title(group)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(
            loc="upper left",
            bbox_to_anchor=(1, 1),  # where it lies on no line
            fontsize="small",
            frameon=False,
            alignment="left",
            title="last value",
            title_fontsize="small",
        )
    for panel in list(plot.axes)[len(groups) :]:
        panel.set_visible(False)
    save_plot(plot, path)
