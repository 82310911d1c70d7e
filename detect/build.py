"""From configuration to objects: datasets and detectors."""

from pathlib import Path

from backbones import create_backbone
from backbones.errors import UserError
from backbones.layers import freeze_blocks
from backbones.weights import load_weights, warm_start
from detect.config import DatasetConfig, ModelConfig
from detect.datasets import DetectionDataset, load_coco, load_voc, make_digits
from detect.proposals import (
    GridProposer,
    LearnedProposer,
    Proposer,
    SelectiveSearchProposer,
)
from detect.rcnn import RCNN


def build_dataset(config: DatasetConfig, split: str) -> DetectionDataset:
    """Load one split; `digits` are generated first where they are missing.

    Raises:
        UserError: a file is missing or malformed, or the split is empty.
    """
    root = Path(config.root)
    if config.format == "voc":
        return load_voc(root, split, class_names=config.class_names)
    if config.format == "digits":
        make_digits(root)
    annotations = _first_existing(
        root / "annotations" / f"instances_{split}.json", root / "annotations" / f"{split}.json"
    )
    return load_coco(annotations, _first_existing(root / split, root / "images" / split))


def _first_existing(first: Path, second: Path) -> Path:
    for path in (first, second):
        if path.exists():
            return path
    raise UserError(f"{first}: not found, and neither is {second}: check data.root and the split")


def build_detector(config: ModelConfig, num_classes: int) -> RCNN:
    """A detector with random weights, or with its crop network's from `config.weights`."""
    backbone = create_backbone(
        config.variant, num_classes=0, width=config.width, dropout=config.dropout
    )
    if config.weights is not None:
        state, _ = load_weights(config.weights)
        warm_start(backbone, state)
    freeze_blocks(backbone, config.freeze)
    return RCNN(backbone, build_proposer(config), num_classes, config.rcnn)


def build_proposer(config: ModelConfig) -> Proposer | None:
    """The proposer, or None where proposals are precomputed and come with the data.

    Raises:
        MissingPackageError: selective search without OpenCV's contrib modules.
    """
    if config.proposer == "learned":
        return LearnedProposer(
            config.learned,
            top_n=config.proposals_per_image,
            top_n_train=config.proposals_per_image_train,
            score_thresh=config.proposal_score_thresh,
        )
    if config.proposer == "grid":
        return GridProposer(config.grid)
    if config.proposer == "selective_search":
        return SelectiveSearchProposer(config.selective_search)
    return None
