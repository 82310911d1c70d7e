"""Scores of classifiers, each alone and together as an ensemble, as a table and a file."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from backbones.classification.classifiers import load_classifiers, open_matching_split
from backbones.classification.evaluation import (
    Predictions,
    average,
    class_scores,
    predict,
    top_scores,
)
from backbones.common.device import Precision, resolve_device, resolve_precision
from backbones.common.errors import UserError
from backbones.common.files import make_folder, numbered_folder, write_json
from backbones.common.ranges import check_ranges
from backbones.common.read_json import read_json
from backbones.data.multi_crop import CropCount

logger = logging.getLogger(__name__)

NEW_FOLDERS = Path("runs/evaluate_backbone")
"""The first folder of reports that name no file; others have numbers behind it."""

WORST = 10
"""Classes in the table; the file has all."""


@dataclass(frozen=True)
class SplitConfig:
    """Which dataset."""

    root: str = "data/imagenet"
    """Folder of the dataset, with SPLIT/CLASS/* or with shards SPLIT-*.tar."""
    max_classes: int | None = None
    """Number of classes that are used, the first ones, as in training; null uses all."""


@dataclass(frozen=True)
class EvaluateBackboneConfig:
    """What to score on what."""

    weights: list[str]
    """Checkpoints (.safetensors) that train_backbone wrote, or run folders, of which the averaged
    and the raw weights are scored side by side; several make an ensemble."""
    data: SplitConfig = field(default_factory=SplitConfig)
    """Images that are classified."""
    split: str = "val"
    """Part of the dataset that is scored."""
    crops: CropCount = 1
    """Crops of each image, whose probabilities are averaged: 1 is the central one, 12 or 144 are
    those of the papers."""
    batch_size: int = 32
    """Crops that a network is given at once."""
    workers: int = 1
    """Processes that read images; 0 reads them in the process that classifies."""
    precision: Precision = "fp32"
    """Numbers that convolutions compute in: `fp32`, `bf16`, `fp16`; `auto` takes bf16 where the
    device has instructions for it."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    output: str | None = None
    """JSON file for the scores, of all images together and of each class; an earlier report is
    replaced, any other file is not. null: report.json in a new folder `runs/evaluate_backbone`, or
    with the first number from 2 behind it that is not taken."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError("weights: name at least one checkpoint")
        check_ranges(self, "", {"[1, inf)": "batch_size", "[0, inf)": "workers"})


def evaluate_backbones(config: EvaluateBackboneConfig) -> dict[str, Any]:
    """Score classifiers and write a report.

    Returns:
        What the file holds: `data`, `split`, `crops`, `images` (their number), `unreadable`
        (messages), `scores` by name of the weights (see `top_scores`), and `classes`, the worst
        first, as the ensemble or the only network has them (see `ClassScore`); and `output`, where
        it is.

    Raises:
        UserError: weights or images are not there, their classes differ, or the output is a file
            of others.
    """
    if config.output is not None:
        make_folder(Path(config.output).parent)
        _check_replaceable(config.output)
    device = resolve_device(config.device)
    classifiers, class_names = load_classifiers(config.weights)
    source = open_matching_split(
        config.data.root, config.split, class_names, config.data.max_classes
    )
    output = config.output or numbered_folder(NEW_FOLDERS) / "report.json"
    results: dict[str, Predictions] = {}
    for classifier in classifiers:
        logger.info("evaluating %s", classifier.name)
        model = classifier.model
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        results[classifier.name] = predict(
            model,
            source,
            config.crops,
            batch_size=config.batch_size,
            workers=config.workers,
            precision=resolve_precision(config.precision, device),
        )
    members = [results[classifier.name] for classifier in classifiers if classifier.in_ensemble]
    chosen = members[0]
    if len(members) > 1:
        chosen = results[f"ensemble of {len(members)}"] = average(members)
    report = {
        "data": config.data.root,
        "split": config.split,
        "crops": config.crops,
        "images": len(chosen.labels),
        "unreadable": chosen.skipped,
        "scores": {name: top_scores(predictions) for name, predictions in results.items()},
        "classes": [asdict(score) for score in class_scores(chosen, source.class_names)],
    }
    write_json(output, report, indent=2)
    return report | {"output": str(output)}


def _check_replaceable(path: str) -> None:
    content: Any = None
    with suppress(UserError):
        content = read_json(path)
    is_own = isinstance(content, dict) and content.keys() >= {"crops", "scores", "classes"}
    if os.path.lexists(path) and not is_own:
        raise UserError(
            f"{path}: is there already, and is no report that was written here: delete it, or name "
            "another output"
        )


def format_report(report: Mapping[str, Any]) -> str:
    """Scores line by line, and the worst classes, of what `evaluate_backbones` returns."""
    scores = report["scores"]
    width = max(map(len, scores))
    lines = [f"{'weights':{width}}  crops   top-1   top-5   images  unreadable"]
    for name, score in scores.items():
        shares = f"{100 * score['top1']:5.2f} % {100 * score['top5']:5.2f} %"
        counts = f"{report['images']:7d} {len(report['unreadable']):11d}"
        lines.append(f"{name:{width}}  {report['crops']:5d} {shares}  {counts}")
    lines += ["", "worst classes"]
    for each in report["classes"][:WORST]:
        others = ", ".join(f"{name} {count}" for name, count in each["taken_for"][:3])
        share = f"{100 * each['top1']:.1f} % of {each['images']}"
        lines.append(f"{each['name']}: {share}, taken for {others or '-'}")
    return "\n".join(lines)
