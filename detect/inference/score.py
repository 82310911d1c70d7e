"""Running a detector over a dataset: its detections, scores, and what they cost."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from backbones.common import distributed
from backbones.common.errors import ImageError, UserError
from backbones.common.files import write_json
from backbones.common.progress import TrainingProgress
from detect.data import DetectionDataset
from detect.data.open import DatasetConfig, build_dataset
from detect.deployment.detector import CALIBRATION_IMAGES
from detect.deployment.exported import ExportedModel
from detect.detector import Detector
from detect.evaluation import evaluate_coco, evaluate_voc, to_coco_results
from detect.media.sources import spread
from detect.proposals import Proposals
from detect.streaming import busy_seconds, work_through

logger = logging.getLogger(__name__)

Looks = dict[int, tuple[dict[str, Tensor], Tensor]]
"""By index of an image: its detections, and the boxes that were looked at."""


@dataclass(frozen=True)
class Cost:
    """What an image costs on average.

    Attributes:
        crops_per_image: crops that go through the network, the proposer's choice of how many; None
            for an exported detector, which does not tell them.
        seconds_per_image: to propose, classify and select, in batches, threads and processes, while
            the next images are read.
    """

    crops_per_image: float | None
    seconds_per_image: float


class Detected(NamedTuple):
    """What a detector made of a dataset.

    Attributes:
        detections: for each image in the dataset's order a dict as from `Detector`.
        regions: for each image the boxes that it looked at, `float32 [P_i, 4]`, best first; None
            for an exported detector.
        cost: of an image.
    """

    detections: list[dict[str, Tensor]]
    regions: list[Tensor] | None
    cost: Cost


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
        What `test.json` holds: the scores of `evaluate_coco` and what a `Cost` has.
    """
    detections, _, cost = detect_dataset(detector, dataset, proposals)

    def score() -> dict[str, Any]:
        scores = evaluate_coco(dataset, detections) | asdict(cost)
        if voc:
            scores["VOC_mAP"] = evaluate_voc(dataset, detections)["mAP"]
            scores["VOC07_mAP"] = evaluate_voc(dataset, detections, method="11_point")["mAP"]
        return scores

    # All have everything that was found; one need score it.
    scores = distributed.call_on_main(score)
    if not distributed.is_main():
        return scores
    write_json(folder / "test_results.json", to_coco_results(dataset, detections))
    write_json(folder / "test.json", scores, indent=2)
    return scores


def detect_dataset(
    detector: Detector,
    dataset: DetectionDataset,
    proposals: Mapping[int, Proposals] | None = None,
) -> Detected:
    """Run a detector over every image of a dataset.

    With several processes each looks at its part of the images, and all get everything.

    An image that cannot be read counts as one without detections, with a warning that names it:
    its objects were missed.

    Args:
        detector: what to run.
        dataset: what to run it on.
        proposals: from `proposals_for`, for a detector without a proposer.

    Raises:
        UserError: no image can be read.
    """
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    nowhere = torch.zeros(0, 4)
    no_label = torch.zeros(0, dtype=torch.int64)
    nothing = {"boxes": nowhere, "labels": no_label, "scores": torch.zeros(0)}
    found: Looks = dict.fromkeys(own, (nothing, nowhere))
    unreadable: list[str] = []
    crops, looked_at = 0, 0
    spans: list[tuple[float, float]] = []

    def work(batch: list[tuple[int, Tensor]]) -> tuple[Looks, tuple[float, float]]:
        started = time.perf_counter()
        # On a GPU they go there once, for both.
        images = [detector.as_tensor(image) for _, image in batch]
        if is_exported:
            regions = None
        elif proposals is None:
            regions = detector.propose(images)
        else:
            regions = [proposals[dataset.image_ids[index]] for index, _ in batch]
        detections = detector.detect_tensors(images, regions)
        ended = time.perf_counter()
        boxes = [nowhere] * len(batch)
        if regions is not None:
            boxes = [proposal.boxes.cpu() for proposal in regions]
        indices = (index for index, _ in batch)
        looks = zip(detections, boxes, strict=True)
        return dict(zip(indices, looks, strict=True)), (started, ended)

    is_exported = isinstance(cast(object, detector.model), ExportedModel)
    device, readable = detector.device, _readable(dataset, own, unreadable)
    with TrainingProgress("evaluate", len(own)) as progress:
        for looks, span in work_through(readable, work, device, len(own)):
            found |= looks
            crops += sum(len(image_boxes) for _, image_boxes in looks.values())
            spans.append(span)
            looked_at += len(looks)
            progress.update(looked_at, len(looks), waited=None, notes="")
    parts = distributed.gather((found, crops, busy_seconds(spans), looked_at, unreadable))
    for message in (message for part in parts for message in part[4]):
        logger.warning("counted as without detections: %s", message)
    ordered = [parts[index % len(parts)][0][index] for index in range(len(dataset))]
    detections, regions = (list(column) for column in zip(*ordered, strict=True))
    looked_at = sum(part[3] for part in parts)
    told = None if is_exported else regions
    if looked_at == 0:
        raise UserError(f"none of the {len(dataset)} images can be read, see above")
    # Processes work at once, as threads do.
    crops, seconds = sum(part[1] for part in parts), max(part[2] for part in parts)
    cost = Cost(None if is_exported else crops / looked_at, seconds / looked_at)
    return Detected(detections, told, cost)


def calibration_images(data: DatasetConfig, split: str | None) -> Iterator[Tensor]:
    """Images from all over a split, as `deploy_detector` takes them; of None no images.

    Raises:
        UserError: as `build_dataset`.
    """
    if split is None:
        return
    dataset = build_dataset(data, split)
    for index in spread(range(len(dataset)), CALIBRATION_IMAGES):
        try:
            yield dataset.load_image(index)
        except ImageError as error:
            logger.warning("not calibrated on: %s", error)


def _readable(
    dataset: DetectionDataset, indices: Sequence[int], unreadable: list[str]
) -> Iterator[tuple[int, Tensor]]:
    """Images with their index; the errors of others join `unreadable`."""
    for index in indices:
        try:
            yield index, dataset.load_image(index)
        except ImageError as error:
            unreadable.append(str(error))
