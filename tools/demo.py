"""The demo: train on handwritten digits, score, draw held-out pictures and a video.

python -m tools.demo
"""

import itertools
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.images import write_image
from detect.checkpoint import load_detector
from detect.config import DetectorConfig
from detect.data.augmentation import rescale_boxes, resize_image
from detect.detector import Detector
from detect.inference.annotate import infer
from detect.media.drawing import draw_detections, gallery
from detect.media.sources import Input, find_inputs, read_input
from detect.media.video import slideshow
from detect.training.train import train_in_processes

logger = logging.getLogger(__name__)

PICTURES = 12

SCORE_THRESH = 0.4
"""Detections below it are not drawn. Scores of proposals have a share in it, so 0.5 is strict."""


@dataclass(frozen=True)
class DemoConfig:
    """Where the demo leaves what it makes."""

    run: str = "runs/demo"
    """Folder of the run; a number is added to its name where there is one already."""


@command
def main() -> None:
    """Run from the command line."""
    began = time.monotonic()
    chosen = parse_config(DemoConfig, description="Train on handwritten digits and draw results.")
    run = free_folder(Path(chosen.run))
    config = parse_config(DetectorConfig, ["--config", "digits_79", "--run", str(run)])
    try:
        outcome = train_in_processes(config)
    except KeyboardInterrupt:
        command = f"python -m tools.train_detector --run {run} --resume"
        logger.info("the demo begins anew; to continue its training: %s", command)
        raise
    trained = time.monotonic()
    assert config.data.root is not None  # the configuration names it
    held_out = find_inputs([str(Path(config.data.root) / "val")]).images[:PICTURES]
    video = run / "held_out.mp4"
    slideshow(video, map(read_input, held_out), fps=2, size=(256, 256))
    detector = load_detector(outcome["weights"])
    source = find_inputs([*map(str, held_out), str(video)])
    infer(detector, source, run / "pictures", score_thresh=SCORE_THRESH)
    drawn = [draw_enlarged(detector, path) for path in held_out]
    write_image(run / "gallery.jpg", gallery(drawn, columns=4))
    scores = outcome["val"]
    minutes, drawing = (trained - began) / 60, time.monotonic() - trained
    print(f"trained and scored in {minutes:.1f} minutes, drew in {drawing:.0f} s")
    print(f"held-out digits: AP {scores['AP']:.3f}, AP50 {scores['AP50']:.3f}")
    print(f"pictures: {run}/gallery.jpg")
    print(f"video:    {run}/pictures/held_out.mp4")
    print(f"curves:   {run}/curves.png")
    print(f"weights:  {outcome['weights']}")


def free_folder(folder: Path) -> Path:
    """The folder, or with the first number from 2 behind its name under which there is none yet.

    The demo shows the whole job each time, and never at the cost of an earlier run.
    """
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not os.path.exists(path))


def draw_enlarged(detector: Detector, path: Input) -> Tensor:
    """An image at twice its size with what is found in it, so that labels hide less."""
    image = read_input(path)
    kept = detector(image, score_thresh=SCORE_THRESH)
    _, height, width = image.shape
    large = resize_image(image, 2 * min(height, width), 2 * max(height, width))
    boxes = rescale_boxes(kept["boxes"], (height, width), (2 * height, 2 * width))
    return draw_detections(large, {**kept, "boxes": boxes}, detector.class_names)


if __name__ == "__main__":
    main()
