"""What a detector is made for: the keys of its model that are `auto`, from its training data.

The rules give, on blood cells, what validation had chosen there by hand; docs/results.md tells how
they do on data that they had not seen.
"""

import logging
import math
from dataclasses import replace

import numpy as np

from backbones.common.errors import UserError
from backbones.networks.specs import find_spec
from detect.auto import number
from detect.config import ModelConfig, without_learned
from detect.data import DetectionDataset
from detect.data.object_sizes import (
    SMALL_OBJECT,
    WHOLE,
    ObjectSizes,
    choose_scale,
    object_sizes,
)
from detect.proposals.learned import AnchorSizes, LearnedConfig
from detect.proposals.views import area_in_tiles

TILE = 1024
"""Longest side of a tile in pixels, where images are looked at in tiles."""

ANCHOR_RANGE = 7.0
"""Least ratio of the largest anchor to the smallest, so that those of a level suit its stride."""

SMALLEST_ANCHOR = 8.0
"""Least side of an anchor in pixels that the proposer sees, one cell of its finest level."""

PROPOSALS = (60, 2.4)
"""Least proposals of an image in use, and so many for each object of a crowded one."""

CROP_SIZE = (40, 48)
"""Pixels of the smallest and of the largest crop; more paid on no data so far."""

logger = logging.getLogger(__name__)


def derive_model(config: ModelConfig, train: DetectionDataset) -> ModelConfig:
    """The model with values for its keys that are `auto`.

    Raises:
        UserError: there is not one object to derive them from.
    """
    if config.proposer != "learned":
        config = without_learned(config)
    learned, rcnn = config.learned, config.rcnn
    settings = (
        *(learned.scale, learned.tile_size, learned.anchor_sizes),
        *(config.proposals_per_image, config.proposals_per_image_train),
        *(rcnn.crop_size, rcnn.detections_per_image),
    )
    if "auto" not in settings:
        return config
    objects = object_sizes(train)
    if not len(objects.sides):
        raise UserError(
            "the training split has no objects: the keys of model that are auto are derived from "
            "their sizes; name another split by data.train, or give each a value"
        )
    scale = choose_scale(objects) if learned.scale == "auto" else learned.scale
    tile = choose_tile(objects, scale) if learned.tile_size == "auto" else learned.tile_size
    anchors = learned.anchor_sizes
    if anchors == "auto":
        anchors = choose_anchors(objects, scale, tile)
    crowds = crowd_sizes(objects, scale, tile)
    budget, detections = choose_budget(crowds), choose_detections(crowds)
    in_use = budget if config.proposals_per_image == "auto" else config.proposals_per_image
    in_training = config.proposals_per_image_train
    if in_training == "auto":
        in_training = max(100, in_use)
    crop_size, own_detections = rcnn.crop_size, rcnn.detections_per_image
    if crop_size == "auto":
        # No smaller than the network takes: some have a stem for large images.
        crop_size = max(choose_crop_size(objects), find_spec(config.variant).min_size)
    derived = replace(
        config,
        learned=replace(learned, scale=scale, tile_size=tile, anchor_sizes=anchors),
        proposals_per_image=in_use,
        proposals_per_image_train=in_training,
        rcnn=replace(
            rcnn,
            crop_size=crop_size,
            detections_per_image=detections if own_detections == "auto" else own_detections,
        ),
    )
    if config.proposer == "learned" and learned.pre_nms_top_n == LearnedConfig.pre_nms_top_n:
        # Objects of a crowd may all be of one level.
        most = max(learned.pre_nms_top_n, 2 * number(in_use, "model.proposals_per_image"))
        derived = replace(derived, learned=replace(derived.learned, pre_nms_top_n=most))
    return derived


def choose_tile(objects: ObjectSizes, scale: float | None) -> int:
    """Side of a tile in pixels, a multiple of 32; see `choose_scale` where images are whole."""
    if scale is not None:
        return TILE
    side = SMALL_OBJECT / float(np.quantile(objects.sides / objects.longer, 0.05))
    # Larger than it is an image shows no more.
    side = min(side, float(np.median(objects.images.max(axis=1))))
    return int(np.clip(32 * round(side / 32), *WHOLE))


def choose_anchors(objects: ObjectSizes, scale: float | None, tile: int) -> AnchorSizes:
    """Two sizes on each of three levels, in equal ratios over the sizes of objects as seen."""
    seen = objects.sides * (tile / objects.longer if scale is None else scale)
    low, high = np.quantile(seen, [0.01, 0.99])
    # What is larger than a tile is seen in a view of its own, smaller.
    high = min(max(high, ANCHOR_RANGE * max(low, SMALLEST_ANCHOR)), tile)
    low = max(SMALLEST_ANCHOR, min(low, high / ANCHOR_RANGE))
    sizes = [float(round(size)) for size in np.geomspace(low, high, 6)]
    return (sizes[0], sizes[1]), (sizes[2], sizes[3]), (sizes[4], sizes[5])


def crowd_sizes(objects: ObjectSizes, scale: float | None, tile: int) -> np.ndarray:
    """`float64 [I]`: objects of each image, or in as much of it as has a tile's area."""
    areas = [area_in_tiles(*size, scale=scale, tile=tile) for size in objects.images.tolist()]
    return objects.counts / np.array(areas)


def choose_budget(crowds: np.ndarray) -> int:
    """Proposals in use, by the most crowded images but for a hundredth."""
    least, each = PROPOSALS
    return max(least, 10 * math.ceil(each * float(np.quantile(crowds, 0.99)) / 10))


def choose_detections(crowds: np.ndarray) -> int:
    """Detections that are kept: twice the objects of the most crowded image, 100 at least."""
    return max(100, 10 * math.ceil(2 * float(crowds.max()) / 10))


def choose_crop_size(objects: ObjectSizes) -> int:
    """Pixels of a crop: a multiple of 8 about as large as half of the objects with context."""
    return int(np.clip(8 * round(1.2 * float(np.median(objects.sides)) / 8), *CROP_SIZE))


def log_sizes(train: DetectionDataset, model: ModelConfig) -> None:
    """Say in three lines how large objects are, and how the model looks at them."""
    objects = object_sizes(train)
    if not len(objects.sides):
        return
    small, half, large = np.quantile(objects.sides, [0.05, 0.5, 0.95])
    shortest, longest = objects.images.max(axis=1).min(), objects.images.max()
    logger.info(
        "%d objects of %.0f to %.0f pixels (5 to 95 %%, median %.0f), at most %d in an image of "
        "%d to %d pixels",
        *(len(objects.sides), small, large, half, objects.counts.max(), shortest, longest),
    )
    learned = model.learned
    if model.proposer == "learned":
        looks = "images as a whole, longer side resized to"
        if learned.scale is not None:
            looks = f"images at scale {learned.scale:g}, in tiles of"
        sizes = [f"{size:g}" for level in learned.anchor_sizes for size in level]
        logger.info(
            "the proposer sees %s %s pixels; anchors of %s pixels",
            *(looks, learned.tile_size, ", ".join(sizes)),
        )
    area = "" if learned.scale is None else " for each tile's area"
    crop_size = model.rcnn.crop_size or find_spec(model.variant).input_size
    logger.info(
        "crops of %s pixels, %s proposals (%s in training), %s detections at most%s",
        *(crop_size, model.proposals_per_image, model.proposals_per_image_train),
        *(model.rcnn.detections_per_image, area),
    )
