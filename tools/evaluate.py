"""Score a detector, or any detector's results, and write a report.

python -m tools.evaluate --weights runs/mine/best.safetensors --data.format voc --data.root DIR \
    --split test
python -m tools.evaluate --results results.json --data.format coco --data.root DIR --split val2017
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from backbones.common.cli import run_tool
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder
from detect.checkpoint import load_detector
from detect.data import DetectionDataset
from detect.data.open import DatasetConfig, build_dataset, check_same_classes, dataset_for
from detect.deployment.detector import DetectorPrecision, Engine, deploy_detector
from detect.detector import Detector
from detect.evaluation import load_results, to_coco_images, to_coco_results
from detect.evaluation.report import write_report
from detect.inference.score import calibration_images, detect_dataset
from detect.proposals import Proposals, load_proposals
from detect.proposals.precomputed import proposals_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateConfig:
    """What to score on what."""

    weights: str | None = None
    """Detector checkpoint (.safetensors) or run folder of what to run; or name `results`."""
    results: str | None = None
    """File in COCO's results format, of any detector; or name `weights`."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """Which dataset."""
    split: str = "val"
    """Which part of it."""
    precomputed: str | None = None
    """File of proposals for a detector that was trained on precomputed ones."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector with other values than in training, keys as for train_detector:
    `--model.proposal_score_thresh 0.1 --model.rcnn.nms_thresh 0.4`."""
    output: str = "runs/evaluate"
    """Folder for report.html and report.json, and for results.json with images.json, which says
    what its image ids are."""
    score_thresh: float = 0.5
    """Scores from which detections enter the confusion matrix and the pictures."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    precision: DetectorPrecision = "auto"
    """`bf16`, `fp32`; `auto` takes bf16 where the device has instructions for it. `int8` sets its
    ranges by `calibration_split` and needs the openvino extra."""
    engine: Engine = "auto"
    """What runs the crop network: `torch`, or `openvino` (the openvino extra), which is faster on a
    CPU and takes seconds to prepare; `auto` takes `openvino` for `int8` alone."""
    calibration_split: str | None = None
    """Split whose first images set the ranges of `int8`; not the one that is scored."""

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.results is None):
            raise UserError("name one of weights and results")
        for key in ("model", "precomputed", "device", "precision", "engine"):
            is_set = getattr(self, key) not in ({}, None, "auto")
            if is_set and self.weights is None:
                raise UserError(f"{key} is for weights: remove it, or name weights for results")
        if (self.precision == "int8") != (self.calibration_split is not None):
            raise UserError("precision int8 and calibration_split belong together: name both")
        if not 0 <= self.score_thresh <= 1:
            raise UserError(f"score_thresh must be in [0, 1], got {self.score_thresh}")


def _proposals(
    config: EvaluateConfig, detector: Detector, dataset: DetectionDataset
) -> dict[int, Proposals] | None:
    has_proposer = detector.model.proposer is not None
    if config.precomputed is None:
        if not has_proposer:
            raise UserError(
                f"{config.weights}: this detector has no proposer of its own: name its proposals "
                "by --precomputed"
            )
        return None
    if has_proposer:
        raise UserError(
            f"{config.weights}: this detector has a proposer of its own: remove --precomputed"
        )
    return proposals_for(load_proposals(config.precomputed), [dataset])


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


def _main() -> None:
    config = parse_config(EvaluateConfig, description="Score detections and write a report.")
    cost, regions, how = None, None, ""
    if config.weights is None:
        assert config.results is not None
        dataset = build_dataset(config.data, config.split)
        detections = load_results(config.results, dataset)
        without = sum(not len(found["boxes"]) for found in detections)
        if without:
            logger.warning(
                "%s: no results for %d of %d images, which count as without detections: "
                "is it a file of this split?",
                *(config.results, without, len(dataset)),
            )
        folder = make_folder(config.output)
    else:
        detector = load_detector(config.weights, config.device, config.model)
        data = dataset_for(config.data, detector.class_names)
        dataset = build_dataset(data, config.split)
        check_same_classes(detector.class_names, detector.category_ids, dataset, config.split)
        proposals = _proposals(config, detector, dataset)
        folder = make_folder(config.output)
        calibration = calibration_images(data, config.calibration_split)
        detector = deploy_detector(detector, config.precision, calibration, config.engine)
        detections, regions, measured = detect_dataset(detector, dataset, proposals)
        cost = asdict(measured)
        precision, engine = detector.metadata["precision"], detector.metadata["engine"]
        how = f", in {precision} ({engine})"
        if config.model:
            how += f", with {json.dumps(config.model)}"
        with atomic_write(folder / "results.json", "w") as file:
            json.dump(to_coco_results(dataset, detections), file)
        with atomic_write(folder / "images.json", "w") as file:
            json.dump(to_coco_images(dataset), file)
    title = f"{config.weights or config.results} on {config.data.root}, {config.split}{how}"
    figures = write_report(
        *(dataset, detections, folder),
        title=title,
        score_thresh=config.score_thresh,
        cost=cost,
        regions=regions,
    )
    scores = {key: figures["coco"][key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    print(", ".join(f"{key} {value:.3f}" for key, value in scores.items() if value is not None))
    if cost is not None and cost["seconds_per_image"] is not None:
        crops, seconds = cost["crops_per_image"], cost["seconds_per_image"]
        print(f"{crops:.1f} crops and {seconds:.3f} s an image, reading not counted")
    print(f"report: {folder}/report.html")


if __name__ == "__main__":
    main()
