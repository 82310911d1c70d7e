"""Write the proposals of a detector for whole splits: to train and compare several on the same.

lowres-rcnn propose --weights runs/mine --data DIR --splits "[train, val]"
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.files import make_folder
from detect.checkpoint import load_detector
from detect.data.open import DatasetConfig, build_datasets, dataset_for
from detect.deployment.detector import deploy_detector
from detect.deployment.exported import refuse_exported
from detect.inference.propose import check_image_ids, propose_dataset
from detect.proposals import Proposals, check_replaceable, save_proposals


@dataclass(frozen=True)
class ProposeConfig:
    """Whose proposals for what."""

    weights: str
    """Detector whose proposals are written, a checkpoint (.safetensors) or a run folder."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """Images that are looked at; without any, those of the training of `weights`."""
    splits: tuple[str, ...] = ("train", "val")
    """Parts of the dataset that are looked at, as a list: `"[train, val]"`."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector with other values than in training: `--model.proposals_per_image 100
    --model.proposal_score_thresh 0` for many proposals, as training wants them."""
    output: str = "proposals.json"
    """File of proposals to write, in COCO's results format, for model.precomputed of
    train_detector; one that is there is replaced, any other file is not."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise UserError(f"splits must be different ones, got {list(self.splits)}")


USUAL = "weights data data.format splits model output device"


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(ProposeConfig, description=__doc__, usual=USUAL)
    make_folder(Path(config.output).parent)
    check_replaceable(config.output)
    refuse_exported(config.weights, "does not tell its proposals")
    detector = load_detector(config.weights, config.device, config.model)
    if detector.model.proposer is None:
        raise UserError(f"{config.weights}: this detector has no proposer of its own")
    data = dataset_for(config.data, detector.metadata.get("training"))
    datasets = dict(zip(config.splits, build_datasets(data, config.splits), strict=True))
    check_image_ids(datasets)
    detector = deploy_detector(detector)
    found: dict[int, Proposals] = {}
    for dataset in datasets.values():
        found |= propose_dataset(detector, dataset)
    save_proposals(config.output, found, datasets.values())
    boxes = sum(len(proposals.boxes) for proposals in found.values())
    print(f"{boxes} proposals for {len(found)} images: {config.output}")
