"""What a detector proposes for whole datasets, to be kept in a file and trained on."""

import logging
from collections.abc import Mapping

import torch

from backbones.common.errors import ImageError, UserError
from backbones.common.progress import track
from detect.data import DetectionDataset
from detect.detector import Detector
from detect.proposals import Proposals

logger = logging.getLogger(__name__)


def check_image_ids(datasets: Mapping[str, DetectionDataset]) -> None:
    """Raise `UserError` where splits, by name, share image ids, by which proposals are found."""
    ids = [image_id for dataset in datasets.values() for image_id in dataset.image_ids]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"splits {', '.join(datasets)} use the same image ids, by which proposals are found: "
            "number their images anew"
        )


def propose_dataset(detector: Detector, dataset: DetectionDataset) -> dict[int, Proposals]:
    """Proposals for every image of a dataset, by image id, on the CPU.

    An image in which nothing is proposed, or that cannot be read, has itself as the one proposal,
    with the score 0: a file of proposals cannot say that an image was looked at and has none.

    Raises:
        ValueError: the detector has no proposer.
    """
    found: dict[int, Proposals] = {}
    for index in track(range(len(dataset)), len(dataset), "propose"):
        sample = dataset.sample(index)
        whole = torch.tensor([[0.0, 0.0, sample.width, sample.height]])
        proposals = Proposals(whole, torch.zeros(1))
        try:
            looked_at = detector.propose([dataset.load_image(index)])[0]
        except ImageError as error:
            logger.warning("without proposals: %s", error)
        else:
            if len(looked_at.boxes):
                proposals = Proposals(*(values.cpu() for values in looked_at))
        found[sample.image_id] = proposals
    return found
