"""What a detector is made of and how it is trained: the typed form of `configs/detector/*.yaml`."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.networks.finetuning import Frozen
from backbones.networks.inception import check_setting
from backbones.training.config import TrainConfig
from backbones.training.recipe import OptimConfig
from detect.auto import Auto
from detect.data.augmentation import AugmentConfig
from detect.data.open import DatasetConfig
from detect.proposals import GridConfig, LearnedConfig, SelectiveSearchConfig
from detect.rcnn.config import RCNNConfig


@dataclass(frozen=True)
class DataConfig(DatasetConfig):
    """Which images and boxes, and what each part of them is for."""

    train: str = "train"
    """Split to train on."""
    val: str | None = "val"
    """Split for the scores during training, which choose the best epoch; null for none."""
    test: str | None = None
    """Split scored once, after training; null for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val is None:
            # None is to be made: the training images are all trained on.
            object.__setattr__(self, "val_share", 0.0)


LEARNED_FROM_DATA = LearnedConfig(scale="auto", tile_size="auto", anchor_sizes="auto")


LEARNED_ALONE = ("proposals_per_image", "proposals_per_image_train", "proposal_score_thresh")
"""Keys of `ModelConfig` that a learned proposer alone reads, besides its own."""


@dataclass(frozen=True)
class ModelConfig:
    """The detector: crop network, proposals, R-CNN."""

    variant: str = "inception_v3_79"
    """Crop network, a name that `create_backbone` knows."""
    width: float = 0.25
    """Width multiplier of the crop network: 0.25, 0.5, 0.75 or 1.0."""
    dropout: float = 0.0
    """Share of the features that dropout leaves out before the crop network's classifier."""
    weights: str | None = None
    """Weights that the crop network starts from, and whose normalisation the detector takes: a
    backbone's file or run folder, a state dict of torchvision or timm, or a name,
    `torchvision:IMAGENET1K_V1`, `timm:NAME`, `hf-hub:OWNER/NAME`; those of a
    wider network are narrowed; null starts at random."""
    init: str | None = None
    """Trained detector, file or run folder, that all networks start from, the proposer's too.
    Classes are matched by name; keys that are auto follow the new data. `starter:voc2007` comes
    with the package; null starts each network by itself."""
    freeze: Frozen = "none"
    """Parts of the crop network that keep the weights and statistics they start from: all blocks up
    to and including this one. `stage_c` trains what lies on top alone."""
    proposer: Literal["learned", "grid", "selective_search", "precomputed"] = "learned"
    """What proposes regions: `learned` with the detector, `grid` for sliding windows,
    `selective_search`, or `precomputed` for a file."""
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    """Settings of the learned proposer."""
    grid: GridConfig = field(default_factory=GridConfig)
    """Settings of the sliding-window proposer."""
    selective_search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)
    """Settings of selective search, which needs OpenCV's contrib modules."""
    precomputed: str | None = None
    """File of proposals in COCO's results format, covering all splits, for the precomputed
    proposer."""
    proposals_per_image: int | Auto = 100
    """Most learned proposals of an image in use, each of which costs one crop; of one that is
    looked at in tiles, so many for the area of each. `auto`: by the most objects in the training
    data."""
    proposals_per_image_train: int | Auto = 300
    """Most learned proposals of an image in training, from which the crops of a step are drawn;
    `auto`: by the most objects in the training data."""
    proposal_score_thresh: float = 0.0
    """Score below which learned proposals are not looked at in use: easy images cost fewer
    crops."""
    rcnn: RCNNConfig = field(default_factory=RCNNConfig)
    """Crops, matching and post-processing of the detector."""

    def __post_init__(self) -> None:
        check_setting("model.", self.width, self.dropout)
        if self.init is not None:
            for key, value in (("", self.weights), ("learned.", self.learned.weights)):
                if value is not None:
                    raise UserError(
                        f"model.{key}weights {value} would replace weights of model.init "
                        f"{self.init}: set one of them to null, as --model.init null does"
                    )
        else:
            for key, part in (("", self), ("learned.", self.learned)):
                if part.freeze != "none" and part.weights is None:
                    raise UserError(
                        f"model.{key}freeze {part.freeze} would keep random weights: set "
                        f"model.{key}weights or model.init"
                    )
        unused = {
            "learned": self.learned not in (LearnedConfig(), LEARNED_FROM_DATA),
            "grid": self.grid != GridConfig(),
            "selective_search": self.selective_search != SelectiveSearchConfig(),
            "precomputed": self.precomputed is not None,
        }
        del unused[self.proposer]
        for key, is_set in unused.items():
            if is_set:
                raise UserError(
                    f"model.{key} is set but model.proposer is {self.proposer!r}: "
                    f"set model.proposer to {key!r} or remove model.{key}"
                )
        if self.proposer == "precomputed" and self.precomputed is None:
            raise UserError("model.precomputed must name a file when model.proposer is precomputed")
        if self.proposer != "learned":
            for key in LEARNED_ALONE:
                if getattr(self, key) not in (getattr(type(self), key), "auto"):
                    raise UserError(
                        f"model.{key} is for model.proposer learned; {self.proposer} proposals are "
                        "all looked at: remove it"
                    )
        if self.proposer == "grid" and self.rcnn.objectness_weight:
            raise UserError(
                "model.rcnn.objectness_weight must be 0 when model.proposer is grid, whose "
                f"windows all have the score 1, got {self.rcnn.objectness_weight}"
            )
        counts = "proposals_per_image proposals_per_image_train"
        check_ranges(self, "model.", {"[1, inf)": counts, "[0, 1]": "proposal_score_thresh"})


def without_learned(model: ModelConfig, **changes: Any) -> ModelConfig:
    """A model with the defaults of what is for a learned proposer alone, and other changes."""
    default = ModelConfig()
    unused = {key: getattr(default, key) for key in ("learned", *LEARNED_ALONE)}
    return replace(model, **unused, **changes)


def model_from_data() -> ModelConfig:
    """The model of a training run: what its data can tell is `auto`."""
    return ModelConfig(
        learned=LEARNED_FROM_DATA,
        proposals_per_image="auto",
        proposals_per_image_train="auto",
        rcnn=RCNNConfig(crop_size="auto", detections_per_image="auto"),
    )


def detector_recipe() -> OptimConfig:
    """What detectors are trained by from random weights: the recipe of BCCD's scores.

    The paper's recipe, the default of `OptimConfig`, is for classifiers and many more steps.
    """
    return OptimConfig(
        optimizer="muon",
        lr=0.003,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=1.0,
        ema_decay=0.995,
        clip_grad=10.0,
    )


@dataclass(frozen=True)
class DetectorConfig(TrainConfig):
    """One detector training run."""

    MAY_CHANGE = TrainConfig.MAY_CHANGE | {"model.selective_search.cache"}

    run: str = "runs/detector"
    epochs: int = 30
    batch_size: int = 8
    data: DataConfig = field(default_factory=DataConfig)
    """Images and boxes that the detector is trained and scored on."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to training images."""
    model: ModelConfig = field(default_factory=model_from_data)
    """Detector that is trained."""
    optim: OptimConfig = field(default_factory=detector_recipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.learned.images_per_step is not None and self.step.accumulate > 1:
            raise UserError(
                "model.learned.images_per_step must be null where step.accumulate is more than 1: "
                "it would count for each part of a step"
            )
