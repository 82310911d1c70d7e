"""From configuration to objects: datasets and detectors."""

from typing import assert_never

from backbones.networks.finetuning import freeze_blocks
from backbones.networks.inception import InceptionV3
from backbones.networks.specs import BackboneSpec
from backbones.networks.warm_start import start_backbone
from detect.auto import number
from detect.config import ModelConfig
from detect.proposals import (
    GridProposer,
    LearnedProposer,
    Proposer,
    SelectiveSearchProposer,
)
from detect.rcnn.model import RCNN


def build_detector(config: ModelConfig, num_classes: int, spec: BackboneSpec | None = None) -> RCNN:
    """A detector with random weights, or with its crop network's from `config.weights`.

    All its networks normalise images alike: as is usual for `config.variant`, or as those weights
    were trained.

    Args:
        config: what it is made of.
        num_classes: K, background not counted.
        spec: `config.variant` with the normalisation and size of a checkpoint whose weights the
            detector will get.
    """
    width, dropout = config.width, config.dropout
    if spec is None:
        backbone = start_backbone(
            config.variant,
            config.weights,
            num_classes=0,
            width=width,
            dropout=dropout,
            role="crop network",
        )
    else:
        backbone = InceptionV3(spec, num_classes=0, width=width, dropout=dropout)
    freeze_blocks(backbone, config.freeze)
    return RCNN(backbone, _build_proposer(config, backbone.spec), num_classes, config.rcnn)


def _build_proposer(config: ModelConfig, spec: BackboneSpec) -> Proposer | None:
    """The proposer, or None where proposals are precomputed and come with the data.

    Args:
        config: of the detector.
        spec: whose mean and standard deviation a network of its own normalises images by.

    Raises:
        MissingPackageError: selective search without OpenCV's contrib modules.
    """
    if config.proposer == "learned":
        return LearnedProposer(
            config.learned,
            top_n=number(config.proposals_per_image, "model.proposals_per_image"),
            top_n_train=number(config.proposals_per_image_train, "model.proposals_per_image_train"),
            score_thresh=config.proposal_score_thresh,
            mean=spec.mean,
            std=spec.std,
        )
    if config.proposer == "grid":
        return GridProposer(config.grid)
    if config.proposer == "selective_search":
        return SelectiveSearchProposer(config.selective_search)
    if config.proposer == "precomputed":
        return None
    assert_never(config.proposer)
