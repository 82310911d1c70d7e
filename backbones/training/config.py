"""What every training run is told, of a backbone or of a detector."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from backbones.common import distributed
from backbones.common.device import Precision
from backbones.common.launch import Processes
from backbones.common.ranges import check_ranges
from backbones.data.sampler import EpochSampler
from backbones.training.recipe import OptimConfig
from backbones.training.step import StepConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run, whatever is trained.

    What extends it adds data and model, and gives `run`, `epochs` and `batch_size` their defaults.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {
            *("run", "resume", "device", "workers"),
            # That data which have moved are the same is told by themselves, see `fit`.
            "data.root",
            # How the images of a step are divided.
            *("processes", "step.accumulate"),
            *("step.compile", "step.on_non_finite", "checkpoint_minutes", "keep_checkpoints"),
        }
    )
    """Keys that a resumed run may have anew: where and how it runs, not what comes of it."""

    run: str
    """Folder for checkpoints, log, curves and weights."""
    epochs: int
    """Passes over the training images. A resumed run may have more than it began with where
    optim.schedule is staircase, which does not depend on their number."""
    batch_size: int
    """Images in a step, of all processes together."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and schedule."""
    precision: Precision = "auto"
    """Numbers that convolutions compute in during training: `fp32`, or under autocast, with weights
    in fp32, `bf16` or `fp16`; `tf32` is fp32 whose products NVIDIA GPUs round to 10 bits; `auto`
    takes bf16 where the device has instructions for it."""
    step: StepConfig = field(default_factory=StepConfig)
    """How a training step is taken."""
    processes: Processes = "auto"
    """Processes that train, which share the images of a step and the cores. `auto` starts one for
    each core of a CPU, up to 8, if equal parts of a step have 4 images of a detector or 16 of a
    backbone; with a GPU one. Several on GPUs have one each. torchrun and srun start their own."""
    workers: int = 1
    """Processes that read and augment images, for each that trains; 0 does it in that one."""
    eval_every: int | Literal["auto"] = 1
    """Epochs between evaluations; the last epoch is always evaluated. `auto`: some ten evaluations
    of a run, one an epoch where it has fewer."""
    checkpoint_minutes: float = 10.0
    """Longest time between two checkpoints; every epoch writes one too."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, the newest ones."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one,
    with several processes each its own."""
    resume: bool | Literal["auto"] = False
    """Continue the run in the run folder, or the newest one where none is named, from its last
    checkpoint, with the configuration it has there where none is given. What would change the
    result is refused. `auto` starts the run where there is none yet."""

    def __post_init__(self) -> None:
        counts = "epochs batch_size eval_every keep_checkpoints processes"
        others = {"[0, inf)": "workers", "[0, inf]": "checkpoint_minutes"}
        check_ranges(self, "", {"[1, inf)": counts, **others})
        self.step.check_batch_size(self.batch_size)

    @property
    def epochs_between_scores(self) -> int:
        """`eval_every` as a number."""
        return max(1, round(self.epochs / 10)) if self.eval_every == "auto" else self.eval_every

    def sampler(self, num_examples: int) -> EpochSampler:
        """Which of the training images this process sees when; raises as `EpochSampler`."""
        return EpochSampler(
            num_examples,
            distributed.own_part(self.batch_size, self.step.accumulate),
            epochs=self.epochs,
            seed=self.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    @property
    def may_change(self) -> frozenset[str]:
        """`MAY_CHANGE`, and the epochs where the learning rate at a step does not go by them."""
        return self.MAY_CHANGE | ({"epochs"} if self.optim.schedule == "staircase" else set())
