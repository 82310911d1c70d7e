"""Running a detector over a dataset: its detections, scores, and what they cost."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones import distributed
from backbones.errors import ImageError
from backbones.files import atomic_write
from backbones.progress import track
from detect.datasets import DetectionDataset
from detect.detector import Detector
from detect.evaluation import evaluate_coco, evaluate_voc, to_coco_results
from detect.proposals import Proposals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What an image costs on average; None where no image could be read.

    Attributes:
        crops_per_image: crops that go through the network, the proposer's choice of how many.
        seconds_per_image: to propose, classify and select; reading the file is not counted.
    """

    crops_per_image: float | None
    seconds_per_image: float | None


def score_detector(
    detector: Detector,
    dataset: DetectionDataset,
    folder: Path,
    proposals: Mapping[int, Proposals] | None = None,
    *,
    voc: bool = False,
) -> dict[str, Any]:
    """Score a detector on a dataset; writes `test.json` and `test_results.json` into `folder`.

    Args:
        detector: what to score.
        dataset: what to score it on.
        folder: where to write.
        proposals: from `proposals_for`, for a detector without a proposer.
        voc: add VOC's mean average precision, as `VOC_mAP` (all points) and `VOC07_mAP`.

    Returns:
        What `test.json` holds: the scores of `evaluate_coco` and the figures of a `Cost`.
    """
    detections, cost = detect_dataset(detector, dataset, proposals)
    scores = evaluate_coco(dataset, detections) | asdict(cost)
    if voc:
        scores["VOC_mAP"] = evaluate_voc(dataset, detections)["mAP"]
        scores["VOC07_mAP"] = evaluate_voc(dataset, detections, method="11_point")["mAP"]
    if not distributed.is_main():
        return scores
    with atomic_write(folder / "test_results.json", "w") as file:
        json.dump(to_coco_results(dataset, detections), file)
    with atomic_write(folder / "test.json", "w") as file:
        json.dump(scores, file, indent=2)
    return scores


def detect_dataset(
    detector: Detector,
    dataset: DetectionDataset,
    proposals: Mapping[int, Proposals] | None = None,
) -> tuple[list[dict[str, Tensor]], Cost]:
    """Detections of every image of a dataset, in its order, and what they cost.

    With several processes each looks at its part of the images, and all get everything.

    An image that cannot be read counts as one without detections, with a warning that names it:
    its objects were missed.

    Args:
        detector: what to run.
        dataset: what to run it on.
        proposals: from `proposals_for`, for a detector without a proposer.
    """
    detections = []
    crops, seconds = [], []
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    for index in track(own, len(own), "evaluate"):
        try:
            image = dataset.load_image(index)
        except ImageError as error:
            logger.warning("counted as without detections: %s", error)
            detections.append(_nothing())
            continue
        started = time.perf_counter()
        if proposals is None:
            looked_at = detector.propose(image)
        else:
            looked_at = proposals[dataset.image_ids[index]]
        detections.append(detector(image, looked_at))
        seconds.append(time.perf_counter() - started)
        crops.append(len(looked_at.boxes) * detector.model.config.crops_per_proposal)
    parts = distributed.gather((detections, crops, seconds))
    cost = Cost(
        _mean([count for part in parts for count in part[1]]),
        _mean([taken for part in parts for taken in part[2]]),
    )
    ordered = [parts[index % len(parts)][0][index // len(parts)] for index in range(len(dataset))]
    return ordered, cost


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _nothing() -> dict[str, Tensor]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "scores": torch.zeros(0),
    }
