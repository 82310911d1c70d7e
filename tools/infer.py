"""Detect objects in images, folders, globs and videos.

python -m tools.infer --weights runs/digits/best.safetensors --inputs photo.jpg folder/ video.mp4
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backbones.common.cli import run_tool
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from detect.checkpoint import load_detector
from detect.deployment.detector import DetectorPrecision, Engine, deploy_detector
from detect.detector import Detector
from detect.inference.annotate import infer
from detect.media.sources import find_inputs, first_images


@dataclass(frozen=True)
class InferConfig:
    """What to detect in what."""

    weights: str
    """Detector checkpoint (.safetensors) that train_detector wrote, or its run folder."""
    inputs: list[str]
    """Image files, video files, folders of them, or glob patterns."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector with other values than in training, keys as for train_detector:
    `--model.proposal_score_thresh 0.1 --model.rcnn.nms_thresh 0.4`."""
    output: str = "runs/infer"
    """Folder for annotated pictures and videos and for results.json."""
    score_thresh: float = 0.5
    """Detections below this probability are neither drawn nor written."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    precision: DetectorPrecision = "auto"
    """`bf16`, `fp32`; `auto` takes bf16 where the device has instructions for it. `int8` needs the
    openvino extra."""
    engine: Engine = "auto"
    """What runs the crop network: `torch`, or `openvino` (the openvino extra), which is faster on a
    CPU and takes seconds to prepare; `auto` takes `openvino` for `int8` alone."""
    calibration: list[str] = field(default_factory=list)
    """Images, videos or folders that set the ranges of `int8`, so that they are the same in each
    call; without any the first inputs do."""

    def __post_init__(self) -> None:
        if not 0 <= self.score_thresh <= 1:
            raise UserError(f"score_thresh must be in [0, 1], got {self.score_thresh}")
        if self.calibration and self.precision != "int8":
            raise UserError("calibration is for precision int8: remove one, or name both")


def lower_score_thresh(detector: Detector, config: InferConfig) -> None:
    """Let the detector keep what is to be written, unless its own threshold is named too."""
    rcnn = detector.model.config
    is_named = "score_thresh" in config.model.get("rcnn", {})
    if config.score_thresh < rcnn.score_thresh and not is_named:
        detector.model.config = replace(rcnn, score_thresh=config.score_thresh)


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


def _main() -> None:
    config = parse_config(InferConfig, description="Detect objects in images and videos.")
    source = find_inputs(config.inputs)
    detector = load_detector(config.weights, config.device, config.model)
    lower_score_thresh(detector, config)
    calibration = find_inputs(config.calibration) if config.calibration else source
    detector = deploy_detector(detector, config.precision, first_images(calibration), config.engine)
    report = infer(detector, source, Path(config.output), score_thresh=config.score_thresh)
    print(
        f"images and frames: {report.images}, objects: {report.detections}, "
        f"written to {config.output}"
    )
    if report.errors:
        raise UserError(f"inputs that could not be read: {len(report.errors)}, see above")


if __name__ == "__main__":
    main()
