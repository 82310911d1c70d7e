"""What a model's `auto` keys become."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from backbones.common.config import from_dict, parse_config, to_dict
from backbones.common.errors import UserError
from detect.build import build_detector
from detect.config import DetectorConfig, ModelConfig
from detect.data import DetectionDataset
from detect.data.augmentation import AugmentConfig
from detect.training.from_data import derive_model, log_sizes
from detect.training.train import canvas_of

AUTO = DetectorConfig().model


def made(
    sides: list[float], size: tuple[int, int] = (480, 640), images: int = 10, each: int = 12
) -> DetectionDataset:
    """Images of one size (height, width) with square objects, whose sides repeat."""
    count = images * each
    side = np.resize(np.asarray(sides, dtype=float), count)
    return DetectionDataset(
        class_names=["a"],
        category_ids=[1],
        image_ids=range(1, images + 1),
        paths=[f"{i}.jpg" for i in range(images)],
        sizes=[size[::-1]] * images,
        image_index=np.repeat(np.arange(images), each),
        boxes=np.stack([0 * side, 0 * side, side, side], axis=1),
        labels=np.ones(count, dtype=int),
    )


def test_cells_get_what_was_chosen_for_them_by_hand():
    """BCCD: 640x480 pixels, platelets of some 40, red cells of 100, white cells of 200."""
    sides = [34, 34, *[43] * 5, *[103] * 83, *[200] * 9, 230]
    model = derive_model(AUTO, made(sides, images=20, each=20))
    assert (model.learned.scale, model.learned.tile_size) == (None, 416)
    hand = np.array([20, 32, 52, 72, 104, 144])
    anchors = np.array([size for level in model.learned.anchor_sizes for size in level])
    assert (np.abs(np.log(anchors / hand)) < 0.25).all(), anchors
    assert model.rcnn.crop_size == 48
    assert model.proposals_per_image == 60
    assert model.proposals_per_image_train == 100
    assert model.rcnn.detections_per_image == 100
    assert canvas_of(model, AugmentConfig()) is None


def test_small_objects_in_large_images_get_tiles_at_full_scale():
    model = derive_model(AUTO, made([20, 24, 40], (2250, 4000), each=200))
    assert (model.learned.scale, model.learned.tile_size) == (1.0, 1024)
    anchors = [size for level in model.learned.anchor_sizes for size in level]
    assert anchors[0] == 20
    assert anchors[-1] == 7 * 20
    assert model.rcnn.crop_size == 40
    assert canvas_of(model, AugmentConfig()) == 512
    assert canvas_of(model, AugmentConfig(window=300)) == 300
    assert canvas_of(model, AugmentConfig(window=5000)) == 1024


def test_crops_are_no_smaller_than_their_network_takes():
    for variant, least in (("inception_v3_79", 40), ("inception_v3_79_naive", 75)):
        model = derive_model(dataclasses.replace(AUTO, variant=variant), made([20, 24, 40]))
        assert model.rcnn.crop_size == least
        build_detector(model, 1)


def test_large_objects_in_large_images_are_seen_smaller():
    """Objects of a fifth of the image, whatever its pixels."""
    small, large = (
        derive_model(AUTO, made([side, 2 * side], size))
        for side, size in ((120, (480, 640)), (750, (3000, 4000)))
    )
    assert small.learned == large.learned
    assert small.learned.scale is None
    assert small.learned.tile_size == 256


def test_middling_objects_in_large_images_are_seen_in_tiles_at_a_smaller_scale():
    model = derive_model(AUTO, made([100, 150, 200], (3000, 4000)))
    assert model.learned.scale == 0.28
    assert canvas_of(model, AugmentConfig()) == 1828
    # The smallest twentieth have the 28 pixels that the finest level needs.
    assert model.learned.anchor_sizes[0][0] == 28


def test_anchors_of_large_objects_spread_downwards_from_the_tile():
    """Objects of 300 to 450 pixels are 120 to 180 as seen, and a tile is 256."""
    model = derive_model(AUTO, made([300, 350, 400, 450]))
    anchors = [size for level in model.learned.anchor_sizes for size in level]
    assert (anchors[0], anchors[-1]) == (37, 256)
    assert model.learned.tile_size == 256


def test_what_follows_proposals_follows_those_that_are_named():
    def derived(**values):
        config = from_dict(DetectorConfig, {"model": values}).model
        model = derive_model(config, made([20, 30]))
        return model.proposals_per_image_train, model.learned.pre_nms_top_n

    assert derived() == (100, 500)
    assert derived(proposals_per_image=400) == (400, 800)
    assert derived(proposals_per_image=20, learned={"pre_nms_top_n": 50}) == (100, 50)


def test_images_are_never_enlarged():
    assert derive_model(AUTO, made([8, 10], (312, 416))).learned.tile_size == 416
    assert derive_model(AUTO, made([8, 10], (900, 900))).learned.scale == 1.0


def test_crowds_get_more_proposals_and_detections():
    crowded = derive_model(AUTO, made([20, 30], (500, 600), each=400))
    assert crowded.proposals_per_image == 960
    assert crowded.proposals_per_image_train == 960
    assert crowded.rcnn.detections_per_image == 800
    assert crowded.learned.pre_nms_top_n == 1920
    # As many in sixteen times the area of a tile are no crowd.
    sparse = derive_model(AUTO, made([20, 30], (4096, 4096), each=400))
    assert sparse.proposals_per_image == 60
    assert sparse.rcnn.detections_per_image == 100


def test_what_is_named_stays_and_the_rest_follows_it():
    values = {
        "learned": {"scale": 0.5, "anchor_sizes": [[8.0], [16.0], [32.0]]},
        "proposals_per_image": 7,
        "rcnn": {"crop_size": 64},
    }
    config = from_dict(DetectorConfig, {"model": values}).model
    model = derive_model(config, made([20, 24, 40], (2250, 4000)))
    assert (model.learned.scale, model.learned.tile_size) == (0.5, 1024)
    assert canvas_of(model, AugmentConfig()) == 1024
    assert model.learned.anchor_sizes == ((8.0,), (16.0,), (32.0,))
    assert (model.proposals_per_image, model.proposals_per_image_train) == (7, 100)
    assert model.rcnn.crop_size == 64
    assert model.rcnn.detections_per_image == 100
    # With everything named there is nothing to derive, from any data.
    assert derive_model(model, made([], each=0)) is model


def test_other_proposers_take_nothing_from_the_data_but_crops():
    config = parse_config(DetectorConfig, ["--model.proposer", "grid"]).model
    model = derive_model(config, made([20, 24, 40], (2250, 4000), each=200))
    assert model == dataclasses.replace(
        ModelConfig(proposer="grid"),
        rcnn=dataclasses.replace(
            ModelConfig().rcnn, crop_size=40, detections_per_image=model.rcnn.detections_per_image
        ),
    )
    assert model.rcnn.detections_per_image == 400


def test_what_is_derived_is_logged_and_can_be_built(caplog):
    with caplog.at_level(logging.INFO):
        model = derive_model(AUTO, made([36, 103, 200]))
        log_sizes(made([36, 103, 200]), model)
        log_sizes(made([], each=0), model)
        log_sizes(made([36, 103, 200]), ModelConfig())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == (
        "120 objects of 36 to 200 pixels (5 to 95 %, median 103), at most 12 in an image of 640 to "
        "640 pixels"
    )
    assert "longer side resized to 512 pixels; anchors of 29, 43," in lines[1]
    assert lines[2] == "crops of 48 pixels, 60 proposals (100 in training), 100 detections at most"
    # Without a size of its own, the network's.
    assert lines[5].startswith("crops of 79 pixels, ")
    with torch.device("meta"):
        build_detector(model, 2)
    assert from_dict(ModelConfig, to_dict(model)) == model


def test_a_model_with_auto_is_not_built():
    with pytest.raises(UserError, match="is auto, which training derives"):
        build_detector(AUTO, 2)


def test_without_objects_there_is_nothing_to_derive_from():
    with pytest.raises(UserError, match="the training split has no objects"):
        derive_model(AUTO, made([], each=0))
