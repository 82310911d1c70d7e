"""A checkpoint of a detector for tests that need one and not what it finds."""

from pathlib import Path

import torch

from backbones.common.config import from_dict
from detect.build import build_detector
from detect.checkpoint import save_detector
from detect.config import ModelConfig

MODEL = {
    "learned": {"tile_size": 64, "channels": 16},
    "proposals_per_image": 5,
    "rcnn": {"crop_size": 32, "score_thresh": 0.0},
}


def save_untrained(path: Path, num_classes: int) -> Path:
    """Write a small detector with random weights, whose classes are named by numbers from 0."""
    torch.manual_seed(0)
    config = from_dict(ModelConfig, MODEL)
    names = [str(index) for index in range(num_classes)]
    detector = build_detector(config, num_classes)
    save_detector(path, detector, config, names, list(range(1, num_classes + 1)), {})
    return path
