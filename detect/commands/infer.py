"""Detect objects in images, folders, globs, videos and streams.

lowres-rcnn infer --weights runs/mine --inputs photo.jpg folder/ video.mp4 --output runs/found

torchrun --nproc-per-node 2 -m -- detect infer --weights runs/mine --inputs folder/ --output DIR
"""

import logging
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import cast

from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from detect.auto import Auto
from detect.checkpoint import load_detector
from detect.deployment.detector import CALIBRATION_IMAGES, deploy_detector
from detect.deployment.exported import ExportedModel
from detect.detector import Detector
from detect.inference.annotate import check_output, infer
from detect.inference.config import InferenceConfig
from detect.inference.formats import Format
from detect.inference.report import InferenceReport
from detect.media.sources import find_inputs, spread_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InferConfig(InferenceConfig):
    """What to detect in what."""

    weights: str
    """Detector checkpoint (.safetensors) that train_detector wrote, its run folder, or a file that
    export wrote (.onnx, .xml)."""
    inputs: list[str]
    """Images and videos to look at: files, folders of them, glob patterns, addresses (`https://`,
    `rtsp://`), a camera by its number, or `-` for names on standard input, one a line."""
    recursive: bool = False
    """Look into the folders in folders too."""
    every: int = 1
    """Frames of a video of which the first is looked at: 1 looks at all."""
    output: str | None = None
    """Folder for annotated pictures and videos and for results.json; by default `runs/infer`,
    `runs/infer2` and so on, a new one for each run."""
    overwrite: bool = False
    """Delete what an earlier run wrote into `output`, which is an error otherwise."""
    resume: bool = False
    """Go on with what an earlier run, however it ended, has left in `output`: inputs that are done
    are not looked at again, and the results are those of one run. Without any, begin."""
    save: list[Format] = field(default_factory=list)
    """Formats beside COCO's JSON: `yolo` and `voc` (a label file an image), `csv` (a row an
    object), `crops` (a picture of each object, in a folder by class)."""
    pre_labels: bool = False
    """Write `yolo` and `voc` as data sets to correct and train on: with a copy of each image, and
    without scores."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes to detect; without any all are."""
    score_thresh: float | Auto = "auto"
    """Score in 0..1 below which detections are neither drawn nor written. `auto`: what had the best
    F1 on the detector's validation data, 0.5 where that is not known."""
    calibration: list[str] = field(default_factory=list)
    """Images and videos, or folders of them, that set the ranges of `int8`, so that they are the
    same in each call; without any some do that are spread over the inputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "", {"[1, inf)": "every"})
        if self.calibration and self.precision != "int8":
            raise UserError("calibration is for precision int8: remove one, or name both")
        if self.resume and (self.overwrite or self.output is None):
            raise UserError("resume is for a named output, and without overwrite")
        if self.pre_labels and not {"yolo", "voc"} & {*self.save}:
            raise UserError("pre_labels is for the formats yolo and voc: name one by save")


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
    if chosen < rcnn.score_thresh and is_named and config.score_thresh != "auto":
        raise UserError(
            f"score_thresh {chosen} is below model.rcnn.score_thresh {rcnn.score_thresh}: name one"
        )
    if chosen < rcnn.score_thresh and not is_named:
        detector.model.config = replace(rcnn, score_thresh=chosen)
    return chosen


USUAL = (
    "weights inputs recursive every output overwrite resume save pre_labels classes score_thresh "
    "device engine precision"
)

LONGEST_WAIT = timedelta(days=365)
"""For a process that has more to do than the others; one that died is noticed by itself."""


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(InferConfig, description=__doc__, usual=USUAL)
    with (
        distributed.processes(config.device, LONGEST_WAIT) as device,
        distributed.lost_processes_are_errors(),
    ):
        report = _infer(config, str(device) if distributed.is_launched() else config.device)
    if not distributed.is_main():
        return
    print(report)
    if faults := report.faults():
        raise UserError(f"{faults}, see above")


def _infer(config: InferConfig, device: str) -> InferenceReport:
    # Standard input can be read once, and a folder may have become fuller for the last to look.
    source = distributed.call_on_main(
        lambda: find_inputs(config.inputs, recursive=config.recursive)
    )
    output = None if config.output is None else Path(config.output)
    how = {"overwrite": config.overwrite, "resume": config.resume}
    if output is not None:
        distributed.call_on_main(lambda: check_output(source, output, config.save, **how))
    detector = load_detector(config.weights, device, config.model)
    score_thresh = chosen_score_thresh(detector, config)
    calibration = find_inputs(config.calibration) if config.calibration else source
    examples = spread_images(calibration, CALIBRATION_IMAGES)
    detector = deploy_detector(detector, config.precision, examples, config.engine)
    if config.classes:
        detector.keep_classes(config.classes)
    return infer(
        detector,
        source,
        output,
        score_thresh=score_thresh,
        save=config.save,
        pre_labels=config.pre_labels,
        every=config.every,
        **how,
    )
