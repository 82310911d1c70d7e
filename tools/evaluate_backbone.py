"""Score backbones as image classifiers, each alone and together as an ensemble.

python -m tools.evaluate_backbone --weights runs/mine/best.safetensors --data.root data/imagenet \
    --crops 144
python -m tools.evaluate_backbone --weights runs/mine --data.root data/imagenet

The second scores the weights of the run's newest checkpoint, averaged and raw.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from backbones.classification.classifiers import load_classifiers, open_matching_split
from backbones.classification.evaluation import (
    Predictions,
    average,
    class_scores,
    predict,
    top_scores,
)
from backbones.common.cli import run_tool
from backbones.common.config import parse_config
from backbones.common.device import Precision, resolve_device, resolve_precision
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder
from backbones.data.multi_crop import Crops

logger = logging.getLogger(__name__)

WORST = 10
"""Classes that are printed; the file has all."""


@dataclass(frozen=True)
class SplitConfig:
    """Which dataset."""

    root: str = "data/imagenet"
    """Folder with SPLIT/CLASS/*, or with shards SPLIT-*.tar."""
    max_classes: int | None = None
    """Use only the first so many classes, as in training; null uses all."""


@dataclass(frozen=True)
class EvaluateBackboneConfig:
    """What to score on what."""

    weights: list[str]
    """Checkpoints (.safetensors) that train_backbone wrote, or run folders, of which the averaged
    and the raw weights are scored side by side; several make an ensemble."""
    data: SplitConfig = field(default_factory=SplitConfig)
    """Which images."""
    split: str = "val"
    """Which part of them."""
    crops: Crops = 1
    """Of each image, their probabilities averaged: 1 central, 12 or 144 as in the papers."""
    batch_size: int = 32
    """Crops that a network is given at once."""
    workers: int = 1
    """Processes that read images; 0 does it in this one."""
    precision: Precision = "fp32"
    """Of the convolutions: `fp32`, `bf16`, `fp16`; `auto` takes bf16 where it is fast."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    output: str = "runs/evaluate_backbone.json"
    """JSON file for the scores, of all classes too."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise UserError("weights: name at least one checkpoint")
        if self.batch_size < 1 or self.workers < 0:
            raise UserError("batch_size must be at least 1 and workers 0 or more")


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


def _main() -> None:
    config = parse_config(EvaluateBackboneConfig, description="Score backbones as classifiers.")
    device = resolve_device(config.device)
    classifiers, class_names = load_classifiers(config.weights)
    source = open_matching_split(
        config.data.root, config.split, class_names, config.data.max_classes
    )
    make_folder(Path(config.output).parent)
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

    scores = {name: top_scores(predictions) for name, predictions in results.items()}
    classes = class_scores(chosen, source.class_names)
    report = {
        "data": config.data.root,
        "split": config.split,
        "crops": config.crops,
        "images": len(chosen.labels),
        "unreadable": chosen.skipped,
        "scores": scores,
        "classes": [asdict(score) for score in classes],
    }
    with atomic_write(config.output, "w") as file:
        json.dump(report, file, indent=2)
    width = max(map(len, scores))
    print(f"{'weights':{width}}  crops   top-1   top-5   images  unreadable")
    for name, score in scores.items():
        figures = f"{100 * score['top1']:5.2f} % {100 * score['top5']:5.2f} %"
        counts = f"{len(chosen.labels):7d} {len(chosen.skipped):11d}"
        print(f"{name:{width}}  {config.crops:5d} {figures}  {counts}")
    print("\nworst classes")
    for each in classes[:WORST]:
        others = ", ".join(f"{name} {count}" for name, count in each.taken_for[:3])
        print(f"{each.name}: {100 * each.top1:.1f} % of {each.images}, taken for {others or '-'}")
    print(f"\nreport: {config.output}")


if __name__ == "__main__":
    main()
