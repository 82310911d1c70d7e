"""Scores of a detector, or of any detector's results, as a report."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.common import distributed
from backbones.common.errors import UserError
from backbones.common.files import write_json
from detect.auto import Auto
from detect.checkpoint import load_detector
from detect.data import DetectionDataset
from detect.data.open import (
    DatasetConfig,
    build_dataset,
    dataset_for,
    has_split,
    keep_out_of_data,
    match_classes,
    resolve_data,
    warn_without_objects,
)
from detect.deployment.detector import deploy_detector
from detect.detector import Detector
from detect.evaluation import load_results, to_coco_results
from detect.evaluation.report import write_report
from detect.evaluation.report_folder import report_folder
from detect.inference.config import InferenceConfig, check_calibration_split
from detect.inference.score import calibration_images, detect_dataset
from detect.proposals import LearnedProposer, Proposals, load_proposals
from detect.proposals.precomputed import proposals_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceConfig):
    """What to score on what."""

    weights: str | None = None
    """Detector to run, a checkpoint (.safetensors), a run folder, or what export wrote (.onnx,
    .xml); or name `results`."""
    results: str | None = None
    """Detections to score, a file in COCO's results format of any detector; or name `weights`."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """Images and boxes that detections are held against; without any, those of the training of
    `weights`."""
    split: str | None = None
    """Part of the dataset that is scored; null takes `test` where there is one, else `val`."""
    precomputed: str | None = None
    """File of proposals for a detector that was trained on precomputed ones."""
    output: str | None = None
    """Folder for report.html and report.json, and where a detector was run for its results.json
    with images.json, which says what the image ids are. An earlier report in a folder that is named
    is replaced; folders of infer and of trainings are refused. null: a new folder `runs/evaluate`,
    or with the first number from 2 behind it that is not taken."""
    score_thresh: float | Auto = "auto"
    """Score in 0..1 from which detections count for precision, recall and F1 by class, the
    confusion matrix and the pictures. `auto`: what had the best F1 on the detector's own validation
    data, 0.5 where that is not known."""
    calibration_split: str | None = None
    """Split of which some images set the ranges of `int8`; not the one that is scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.weights is None) == (self.results is None):
            raise UserError("name one of weights and results")
        for key in ("model", "precomputed", "device", "precision", "engine"):
            is_set = getattr(self, key) not in ({}, None, "auto")
            if is_set and self.weights is None:
                raise UserError(f"{key} is for weights: remove it, or name weights for results")
        check_calibration_split(
            self.split, self.calibration_split, is_int8=self.precision == "int8"
        )


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score what the configuration names; leaves what `EvaluateConfig.output` says.

    Started by torchrun or srun, each process looks at its part of the images (see
    `detect_dataset`), and the main one scores.

    Returns:
        What `report.json` holds, see `write_report`, and `folder`, where it is.

    Raises:
        UserError: a checkpoint, dataset or file is not as the configuration says, or the output is
            refused, see `report_folder`.
    """
    with (
        distributed.processes(config.device) as device,
        distributed.lost_processes_are_errors(),
        ExitStack() as held,
    ):
        if config.weights is None:
            return distributed.call_on_main(lambda: _evaluate_results(config))
        own = str(device) if distributed.is_launched() else config.device
        return _evaluate_detector(config, config.weights, own, held)


def _evaluate_results(config: EvaluateConfig) -> dict[str, Any]:
    assert config.results is not None
    results = config.results
    config, split = with_split(replace(config, data=resolve_data(config.data)), {})
    keep_out_of_data(config.output, config.data)
    dataset = build_dataset(config.data, split)
    warn_without_objects(dataset, split)
    detections = load_results(results, dataset)
    without = sum(not len(found["boxes"]) for found in detections)
    if without:
        logger.warning(
            "%s: no results for %d of %d images, which count as without detections: "
            "is it a file of this split?",
            *(results, without, len(dataset)),
        )
    with report_folder(config.output, has_results=False) as folder:
        return _report(config, dataset, detections, folder, results)


def _evaluate_detector(
    config: EvaluateConfig, weights: str, device: str, held: ExitStack
) -> dict[str, Any]:
    detector = load_detector(weights, device, config.model)
    training = detector.metadata.get("training") or {}
    data = dataset_for(config.data, training)
    keep_out_of_data(config.output, data)
    of_training = {} if config.data.root is not None else training["data"]
    config, split = with_split(replace(config, data=data), of_training)
    dataset = match_classes(
        *(detector.class_names, detector.category_ids, build_dataset(data, split), split),
        unknown="miss",
    )
    warn_without_objects(dataset, split)
    proposals = _proposals(config, detector, dataset)
    calibration = calibration_images(data, config.calibration_split)
    folder = distributed.call_on_main(
        lambda: held.enter_context(report_folder(config.output, has_results=True))
    )
    detector = deploy_detector(detector, config.precision, calibration, config.engine)
    detections, regions, cost = detect_dataset(detector, dataset, proposals)
    how = f", in {detector.metadata['precision']} ({detector.metadata['engine']})"
    if config.model:
        how += f", with {json.dumps(config.model)}"
    proposer, seen = detector.model.proposer, None
    if isinstance(proposer, LearnedProposer):
        seen = [proposer.seen_scale(height, width) for width, height in dataset.sizes.tolist()]

    def write() -> dict[str, Any]:
        write_json(folder / "images.json", dataset.to_coco_images())
        write_json(folder / "results.json", to_coco_results(dataset, detections))
        return _report(
            *(config, dataset, detections, folder, weights, how),
            best_score_thresh=detector.best_score_thresh,
            cost=asdict(cost),
            regions=regions,
            seen=seen,
        )

    return distributed.call_on_main(write)


def with_split(
    config: EvaluateConfig, of_training: Mapping[str, Any]
) -> tuple[EvaluateConfig, str]:
    """The configuration with the split that is scored, said in a line where it names none."""
    split = config.split
    if split is None:
        last = "test" if has_split(config.data, "test") else of_training.get("val") or "val"
        split = of_training.get("test") or last
        if has_split(config.data, split) or config.data.val_share:
            logger.info("%s: scored on the split %s (--split for another)", config.data.root, split)
    config = replace(config, split=split)  # checks it against that of calibration
    return config, split


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
    return proposals_for(load_proposals(config.precomputed, [dataset]), [dataset])


def _report(
    config: EvaluateConfig,
    dataset: DetectionDataset,
    detections: Sequence[Mapping[str, Tensor]],
    folder: Path,
    what: str,
    how: str = "",
    best_score_thresh: float = 0.5,
    **of_detector: Any,
) -> dict[str, Any]:
    report = write_report(
        *(dataset, detections, folder),
        title=f"{what} on {config.data.root}, {config.split}{how}",
        score_thresh=best_score_thresh if config.score_thresh == "auto" else config.score_thresh,
        **of_detector,
    )
    return report | {"folder": str(folder)}
