"""Detect objects in images, folders, globs and videos."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from detect.auto import Auto
from detect.checkpoint import load_detector
from detect.deployment.detector import CALIBRATION_IMAGES, deploy_detector
from detect.deployment.exported import ExportedModel
from detect.detector import Detector
from detect.inference.annotate import infer
from detect.inference.config import InferenceConfig
from detect.media.sources import find_inputs, spread_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InferConfig(InferenceConfig):
    """What to detect in what."""

    weights: str
    """Detector checkpoint (.safetensors) that train_detector wrote, its run folder, or a file that
    export wrote (.onnx, .xml)."""
    inputs: list[str]
    """Images and videos to look at: files, folders of them, or glob patterns."""
    output: str = "runs/infer"
    """Folder for annotated pictures and videos and for results.json."""
    score_thresh: float | Auto = "auto"
    """Score in 0..1 below which detections are neither drawn nor written. `auto`: what had the best
    F1 on the detector's validation data, 0.5 where that is not known."""
    calibration: list[str] = field(default_factory=list)
    """Images and videos, or folders of them, that set the ranges of `int8`, so that they are the
    same in each call; without any some do that are spread over the inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration and self.precision != "int8":
            raise UserError("calibration is for precision int8: remove one, or name both")


def chosen_score_thresh(detector: Detector, config: InferConfig) -> float:
    """What is to be written; the detector keeps that much unless its own threshold is named."""
    chosen = config.score_thresh
    if chosen == "auto":
        chosen = detector.best_score_thresh
        logger.info("detections are shown from a score of %g", chosen)
    model = cast(object, detector.model)
    if isinstance(model, ExportedModel):
        if chosen < (own := model.score_thresh):
            raise UserError(
                f"score_thresh {chosen} is below the {own} of {config.weights}: raise "
                "it, or export with --model.rcnn.score_thresh"
            )
        return chosen
    rcnn = detector.model.config
    is_named = "score_thresh" in config.model.get("rcnn", {})
    if chosen < rcnn.score_thresh and not is_named:
        detector.model.config = replace(rcnn, score_thresh=chosen)
    return chosen


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(InferConfig, description="Detect objects in images and videos.")
    source = find_inputs(config.inputs)
    detector = load_detector(config.weights, config.device, config.model)
    score_thresh = chosen_score_thresh(detector, config)
    calibration = find_inputs(config.calibration) if config.calibration else source
    examples = spread_images(calibration, CALIBRATION_IMAGES)
    detector = deploy_detector(detector, config.precision, examples, config.engine)
    report = infer(detector, source, Path(config.output), score_thresh=score_thresh)
    print(
        f"images and frames: {report.images}, objects: {report.detections}, "
        f"written to {config.output}"
    )
    if report.errors:
        raise UserError(f"inputs that could not be read: {len(report.errors)}, see above")
