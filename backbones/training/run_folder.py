"""The folder of a training run: its config, log, curves and TensorBoard scalars."""

import csv
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from backbones.common import distributed
from backbones.common.config import load_config, save_config, to_dict
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder, remove_unfinished
from backbones.common.plots import new_plot, save_plot
from backbones.training.checkpoints import has_checkpoint

logger = logging.getLogger(__name__)

_COLUMNS = ("step", "epoch", "name", "value")


class CurvePoint(NamedTuple):
    """One value of one curve: `name` is `group/metric`, `epoch` counts passes, fractions too."""

    step: int
    epoch: float
    name: str
    value: float


class RunFolder:
    """A run's folder, used as a context manager while the run goes on.

    Holds `config.yaml` (every key resolved), `log.txt`, `curves.csv` (one row a value, appended),
    `curves.png`, `tensorboard/` and `checkpoints/`; `best.safetensors` and `last.safetensors` are
    written by the caller.

    With several processes only the main one reads and writes here; the others may call everything.

    Args:
        path: made where it is missing.
        config: dataclass of what decides the result, written as `config.yaml`.
        resume: continue the run that is there; where there is none, start it.
        may_change: keys that a resumed run may have anew, see `refuse_another_run`.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or another run than `config`
            describes; it cannot be made; the processes have different configurations.
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        resume: bool = False,
        may_change: Collection[str] = ("resume",),
    ) -> None:
        self.path = Path(path)
        self.resume = resume
        self._config, self._may_change = config, may_change
        if any(other != to_dict(config) for other in distributed.gather(to_dict(config))):
            raise UserError(
                f"{self.path}: the processes were given different configurations: name one with "
                "--config, or put the run folder on a disk that all of them see"
            )
        distributed.call_on_main(self._make)

    def _make(self) -> None:
        config = self.path / "config.yaml"
        if config.exists() and not self.resume:
            raise UserError(
                f"{self.path} already holds a run: continue it with --resume or choose "
                "another folder with --run"
            )
        # Before its first checkpoint a run begins anew, and may do so in another way.
        if config.exists() and has_checkpoint(self.checkpoints):
            refuse_another_run(config, self._config, self._may_change)
        make_folder(self.path)
        for folder in (self.path, self.checkpoints):
            remove_unfinished(folder)

    def __enter__(self) -> "RunFolder":
        if not distributed.is_main():
            return self
        self._handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root = logging.getLogger()
        self._former_level = root.level
        root.setLevel(min(root.level, logging.INFO))
        root.addHandler(self._handler)
        self._curves: IO[str] | None = None
        self._tensorboard: SummaryWriter | None = None
        if not (self.path / "config.yaml").exists():
            save_config(self.path / "config.yaml", self._config)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not distributed.is_main():
            return
        if isinstance(error, Exception):
            logger.error("run stopped: %s", error, exc_info=not isinstance(error, UserError))
        if self._curves is not None:
            self._curves.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._former_level)
        self._handler.close()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints for resuming."""
        return self.path / "checkpoints"

    def open_curves(self, step: int) -> None:
        """Start recording at `step`: what was recorded beyond it is dropped.

        Such rows are of a run that was killed after its last checkpoint; they come again. From here
        on `config.yaml` is that of a resumed run, which may have been refused until now.
        """
        if not distributed.is_main():
            return
        save_config(self.path / "config.yaml", self._config)
        path = self.path / "curves.csv"
        kept = [point for point in read_curves(path) if point.step <= step] if step else []
        with atomic_write(path, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(kept)
        self._curves = path.open("a", encoding="utf-8", newline="")
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def record(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append values, named `group/metric`, to the curves and to TensorBoard."""
        if not distributed.is_main():
            return
        assert self._curves is not None, "open_curves comes first"
        assert self._tensorboard is not None
        writer = csv.writer(self._curves, lineterminator="\n")
        for name, value in values.items():
            writer.writerow(CurvePoint(step, round(epoch, 6), name, float(value)))
            self._tensorboard.add_scalar(name, float(value), step)
        self._curves.flush()

    def draw_curves(self) -> None:
        """Draw `curves.png` from what has been recorded."""
        if not distributed.is_main():
            return
        draw_curves(read_curves(self.path / "curves.csv"), self.path / "curves.png")


def refuse_another_run(path: Path, config: Any, may_change: Collection[str]) -> None:
    """Raise `UserError` unless a run that is resumed is the one that it was.

    Args:
        path: `config.yaml` of the run.
        config: what it is resumed with, of the dataclass that wrote the file.
        may_change: dotted keys whose values may differ.

    Raises:
        UserError: names the keys whose values differ, or a key that the file has and `config` not.
    """
    before, now = (_flatten(to_dict(each)) for each in (load_config(type(config), path), config))
    changed = [
        f"{key} was {before.get(key)} and is {now.get(key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in may_change
    ]
    if changed:
        more = f"; and {len(changed) - 3} more keys" if len(changed) > 3 else ""
        raise UserError(
            f"cannot resume {path.parent}: {'; '.join(changed[:3])}{more}: leave them as the run "
            "began, or choose another folder with --run"
        )


def read_curves(path: Path) -> list[CurvePoint]:
    """The rows of a `curves.csv`, none where it is missing; a last row cut short is left out."""
    if not path.exists():
        return []
    points = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
        row = next(csv.reader([line]), [])
        if line.endswith("\n") and len(row) == len(_COLUMNS):
            points.append(CurvePoint(int(row[0]), float(row[1]), row[2], float(row[3])))
    return points


def draw_curves(points: list[CurvePoint], path: Path) -> None:
    """Draw one panel for each group of curves (the part of the name before `/`) into a PNG."""
    groups: dict[str, dict[str, list[CurvePoint]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        group, _, metric = point.name.partition("/")
        groups[group][metric or group].append(point)
    if not groups:
        return
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    plot = new_plot(5.5 * columns, 3.4 * rows)
    panels = plot.subplots(rows, columns, squeeze=False).flat
    for panel, (group, curves) in zip(panels, groups.items(), strict=False):
        for metric, curve in curves.items():
            epochs = [point.epoch for point in curve]
            values = [point.value for point in curve]
            marker = "o" if len(curve) < 30 else ""
            panel.plot(
                epochs, values, marker=marker, markersize=3, label=f"{metric} {values[-1]:.4g}"
            )
        panel.set_title(group)
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False, title="last value", title_fontsize="small")
    for panel in list(plot.axes)[len(groups) :]:
        panel.set_visible(False)
    save_plot(plot, path)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
