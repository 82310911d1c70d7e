"""A report on one evaluation: scores as JSON, and one HTML page that needs nothing beside it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from backbones.common.files import atomic_write, write_json
from backbones.common.plots import literal, new_plot
from detect.data import DetectionDataset
from detect.evaluation.coco import FINE_SIZES, evaluate_by_size, evaluate_coco, precision_curves
from detect.evaluation.errors import confusion_matrix, error_report
from detect.evaluation.page import fill_page
from detect.evaluation.recall import IOU_THRESHOLDS, proposal_recall, recall_by_size
from detect.evaluation.thresholds import THRESHOLDS, ThresholdCurves, threshold_curves
from detect.evaluation.voc import evaluate_voc
from detect.evaluation.worst import COLORS, worst_images


def write_report(
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Tensor]],
    folder: Path,
    *,
    title: str,
    score_thresh: float = 0.5,
    cost: Mapping[str, float | None] | None = None,
    regions: Sequence[Tensor] | None = None,
    seen: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Score detections and write `report.json` and `report.html` into `folder`.

    Args:
        dataset: ground truth; its images are read for the gallery.
        detections: one dict of `boxes` `[D, 4]` xyxy, `labels` `[D]`, `scores` `[D]` for each image
            in the dataset's order, with low scores too, which average precision needs.
        folder: made where missing.
        title: heading of the page.
        score_thresh: for the confusion matrix and the gallery, which show what a user would see.
        cost: as a `detect.inference.score.Cost` has it, where a detector of ours was run.
        regions: for each image the boxes that were looked at, likewise, best first.
        seen: for each image the pixels that a learned proposer saw for one of it, likewise.

    Returns:
        What `report.json` holds.
    """
    scores = evaluate_coco(dataset, detections)
    curves = threshold_curves(dataset, detections)
    report: dict[str, Any] = {
        "title": title,
        "date": date.today().isoformat(),
        "images": len(dataset),
        "objects": dataset.objects_by_class(),
        "cost": None if cost is None else dict(cost),
        "coco": scores,
        "voc": {
            "mAP": evaluate_voc(dataset, detections)["mAP"],
            "mAP_11_point": evaluate_voc(dataset, detections, method="11_point")["mAP"],
        },
        "sizes": _by_size(dataset, detections, regions, None),
        # Where every pixel is seen as it is, that says all.
        "sizes_seen": None
        if seen is None or set(seen) == {1.0}
        else _by_size(dataset, detections, regions, seen),
        "errors": asdict(error_report(dataset, detections)),
        "score_thresh": score_thresh,
        "at_score_thresh": curves.at(score_thresh),
        "best_F1": curves.best_point(),
        "confusion": {
            "names": ["background", *dataset.class_names],
            "counts": confusion_matrix(dataset, detections, score_thresh).tolist(),
        },
        "precision_at_recall": precision_curves(dataset, detections),
        "proposals": None if regions is None else proposal_recall(dataset, regions),
    }
    page = fill_page(
        "report.html.jinja",
        **report,
        class_names=dataset.class_names,
        curves_svg=_draw_precision_curves(report["precision_at_recall"]),
        thresholds_svg=_draw_thresholds(curves, score_thresh),
        recall_svg=_draw_proposal_recall(report["proposals"] or ()),
        colors=COLORS,
        gallery=worst_images(dataset, detections, score_thresh),
    )
    # Both or none, where the disk has no room: the page is on it before either has its name.
    with atomic_write(folder / "report.html", "w") as file:
        file.write(page)
        file.flush()
        write_json(folder / "report.json", report, indent=2)
    return report


def _by_size(
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Tensor]],
    regions: Sequence[Tensor] | None,
    factors: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Rows of `evaluate_by_size`, each with the recall of the proposals, None without them."""
    rows = evaluate_by_size(dataset, detections, FINE_SIZES, factors)
    recalls: Sequence[float | None] = [None] * len(rows)
    if regions is not None:
        recalls = recall_by_size(dataset, regions, FINE_SIZES, factors)
    return [row | {"proposals": one} for row, one in zip(rows, recalls, strict=True)]


def _draw_precision_curves(curves: Mapping[str, list[float] | None]) -> str:
    """An SVG element."""
    plot, panel = _new_panel()
    shown = {name: curve for name, curve in curves.items() if curve is not None}
    for name, curve in list(shown.items())[:10]:
        # A leading underscore would hide the name from the legend.
        panel.plot(np.linspace(0, 1, len(curve)), curve, label=f"\u200b{literal(name)}")
    if shown:
        panel.plot(
            np.linspace(0, 1, 101), np.mean(list(shown.values()), axis=0), "k--", label="mean"
        )
        panel.legend(frameon=False, fontsize="small")
    panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    return _as_svg(plot)


def _draw_thresholds(curves: ThresholdCurves, score_thresh: float) -> str:
    """An SVG element: F1 by class, and the mean of precision, recall and F1."""
    plot = new_plot(9, 4)
    left, right = plot.subplots(1, 2, sharey=True)
    for name, curve in list(zip(curves.names, curves.f1, strict=True))[:10]:
        left.plot(THRESHOLDS, curve, label=f"\u200b{literal(name)}")
    if curves.names:
        # Where a class has no detection left, its precision is not known.
        known = np.ma.masked_invalid(curves.precision).mean(axis=0)
        right.plot(THRESHOLDS, known, label="precision")
        right.plot(THRESHOLDS, curves.recall.mean(axis=0), label="recall")
        for panel in (left, right):
            panel.plot(THRESHOLDS, curves.f1.mean(axis=0), "k--", label="mean F1")
            panel.legend(frameon=False, fontsize="small")
    for panel, title in ((left, "F1 of each class"), (right, "mean of the classes")):
        panel.axvline(score_thresh, color="0.7", linewidth=1)
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold", title=title)
        _plain(panel)
    return _as_svg(plot)


def _draw_proposal_recall(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG element."""
    plot, panel = _new_panel()
    rows = [row for row in rows if row["count"]]  # the scale is logarithmic
    counts = [row["count"] for row in rows]
    for threshold in IOU_THRESHOLDS:
        recalls = [row[f"recall_{round(100 * threshold)}"] for row in rows]
        if None not in recalls:
            panel.plot(counts, recalls, "o-", label=f"IoU {threshold}")
            panel.legend(frameon=False, fontsize="small")
    panel.set(xscale="log", ylim=(0, 1.02), xlabel="proposals an image", ylabel="recall")
    # Of neighbours whose numbers would overlap the larger one has its number.
    # A digit takes a fiftieth of the scale.
    room = np.log(max(counts, default=1) / min(counts, default=1)) / 50
    names = [
        "" if after and np.log(after / count) < room * len(str(after)) else str(count)
        for count, after in zip(counts, [*counts[1:], 0], strict=False)
    ]
    panel.set_xticks(counts, names)
    panel.minorticks_off()
    return _as_svg(plot)


def _new_panel() -> tuple[Any, Any]:
    """A plot and its only panel."""
    plot = new_plot(6, 4)
    panel = plot.subplots()
    _plain(panel)
    return plot, panel


def _plain(panel: Any) -> None:
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _as_svg(plot: Any) -> str:
    text = io.StringIO()
    plot.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
