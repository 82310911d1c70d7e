"""From configuration to objects: datasets and detectors."""

from backbones import create_backbone
from backbones.networks.finetuning import freeze_blocks
from backbones.networks.weights import load_weights, warm_start
from detect.config import ModelConfig
from detect.proposals import (
    GridProposer,
    LearnedProposer,
    Proposer,
    SelectiveSearchProposer,
)
from detect.rcnn.model import RCNN


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
