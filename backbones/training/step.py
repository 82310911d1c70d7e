"""One step of training: forward and backward in parts, gradients checked, clipped and applied."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from backbones.common import distributed
from backbones.common.device import ResolvedPrecision, autocast, require_compiler
from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.data.datasets import Cursor
from backbones.data.sampler import derive_seed
from backbones.training.recipe import OptimConfig, RunningAverage, build_optimizer

LOWEST_SCALE = 2.0**-10
"""Scale of an fp16 loss below which an infinite gradient is no longer put down to fp16's range."""


class Batch(Protocol):
    """What a step asks of a batch; the rest is between the data and the loss function."""

    @property
    def names(self) -> list[str]:
        """The files the examples come from, one for each."""

    @property
    def skipped(self) -> list[str]:
        """Error messages of unreadable images that others stand in for."""

    def split(self, parts: int) -> list["Batch"]:
        """The examples in order, in so many batches of one size."""


LossFunction = Callable[[nn.Module, Any], Mapping[str, Tensor]]


@dataclass(frozen=True)
class StepConfig:
    """How a step is taken."""

    accumulate: int = 1
    """Parts that a batch goes through the network in, one after the other: a large batch in little
    memory. Batch normalisation sees the parts."""
    sync_batch_norm: bool = False
    """Batch normalisation by the batches of all GPUs together, not on each by its own."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, faster steps on a GPU."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do when loss or gradient is infinite or not a number: stop, or skip the step."""

    def __post_init__(self) -> None:
        check_ranges(self, "step.", {"[1, inf)": "accumulate"})

    def check_batch_size(self, batch_size: int) -> None:
        """Raise `UserError` unless a batch splits into equal parts."""
        if batch_size % self.accumulate:
            raise UserError(
                f"batch_size {batch_size} is no multiple of step.accumulate {self.accumulate}"
            )


class TrainStep:
    """A model with what changes its weights: optimiser, weight averaging, loss scaling.

    Args:
        model: on its device; trained in place.
        loss_fn: named terms of the loss, each a scalar and a mean over the batch; their sum is
            minimised.
        optim: optimiser and weight averaging.
        precision: `bf16` and `fp16` run the loss function under autocast; `fp16` scales the loss so
            that small gradients do not vanish.

    Attributes:
        ema: running average of the weights, None where `optim` has none.

    Raises:
        UserError: `sync_batch_norm` on a CPU, or `compile` without a compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        optim: OptimConfig,
        config: StepConfig,
        precision: ResolvedPrecision,
        seed: int,
    ) -> None:
        self.device = next(model.parameters()).device
        if config.sync_batch_norm:
            if self.device.type != "cuda":
                raise UserError("step.sync_batch_norm needs a GPU: PyTorch has it for no other")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model, self.config = model, config
        self._loss_fn, self._optim, self._seed = loss_fn, optim, seed
        self._precision = precision
        self.optimizer = build_optimizer(model, optim)
        self.ema = None if optim.ema_decay is None else RunningAverage(model, optim.ema_decay)
        self._scaler = GradScaler(self.device.type, enabled=precision == "fp16")
        self._network: nn.Module | None = None
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        self._saved_buffers: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs, by part."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave; raises `UserError` naming the part that does not fit."""
        for name, part in self._parts().items():
            try:
                part.load_state_dict(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"its {name} does not fit this configuration and these data: give those that "
                    "the run began with"
                ) from error

    def accumulate_gradients(self, batch: Batch, step: int) -> dict[str, float]:
        """Forward and backward; the loss, its terms, and the norm of the clipped gradient.

        torch's generators are seeded by (seed, step, rank) before, so that a step is the same
        whatever came before it.
        """
        if self.config.on_non_finite == "skip":
            self._saved_buffers = [buffer.clone() for buffer in self._buffers]
        network = self._wrapped()
        torch.manual_seed(derive_seed(self._seed, step, distributed.rank()))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        parts = batch.split(self.config.accumulate) if self.config.accumulate > 1 else [batch]
        for number, part in enumerate(parts):
            # Gradients travel between processes once, with the last part.
            waits = number + 1 < len(parts) and isinstance(network, DistributedDataParallel)
            with network.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with autocast(self.device, self._precision), _too_few_are_errors(part):
                    terms = self._loss_fn(network, part)
                loss = torch.stack([term.float() for term in terms.values()]).sum()
                for name, term in {**terms, "total": loss}.items():
                    share = term.detach().double() / len(parts)
                    key = f"loss/{name}"
                    sums[key] = sums[key] + share if key in sums else share
                self._scaler.scale(loss / len(parts) if len(parts) > 1 else loss).backward()
        self._average_statistics()
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = math.inf if self._optim.clip_grad is None else self._optim.clip_grad
        sums["grad_norm"] = nn.utils.clip_grad_norm_(parameters, limit).detach().double()
        # Read at once, in the end: a GPU is waited for each time.
        return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))

    def apply_gradients(self, lr: float) -> None:
        """Change the weights by the gradients that are there, and average them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def drop_gradients(self) -> None:
        """Undo `accumulate_gradients`: what the batch left in running statistics goes too."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            # It has looked at these gradients, and must be updated before it looks at others.
            self._scaler.update()
        for buffer, saved in zip(self._buffers, self._saved_buffers, strict=False):
            buffer.copy_(saved)

    def lower_scale(self) -> bool:
        """After an infinite gradient of a finite loss: whether a smaller scale may mend it."""
        if not self._scaler.is_enabled() or self._scaler.get_scale() < LOWEST_SCALE:
            return False
        # Found infinite in `unscale_`: this changes no weight.
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return True

    def _average_statistics(self) -> None:
        """Make the running statistics those of the batches of all processes.

        The plain mean, of the variances too: each process normalises by its own batch, and so the
        batches of a step count as batches one after the other do in a single process, whose running
        variance knows nothing of the differences between their means either. After every step, in
        place of DistributedDataParallel's broadcast of the main process's own: then scores,
        averaged weights and checkpoints have the same statistics whenever they are made.
        """
        buffers = [
            buffer
            for norm in self._norms
            if norm.training  # frozen ones stay as they are, to the bit
            for buffer in (norm.running_mean, norm.running_var)
            if buffer is not None
        ]
        distributed.average(buffers)

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if self.ema is not None:
            parts["ema"] = self.ema
        if self._scaler.is_enabled():
            parts["scaler"] = self._scaler
        return parts

    def _wrapped(self) -> nn.Module:
        """The model as it is called: compiled, and averaging gradients over processes."""
        if self._network is None:
            network = self.model
            if self.config.compile:
                if self.device.type == "cpu":
                    require_compiler("step.compile")
                if type(network).compile is nn.Module.compile:
                    network = torch.compile(network)  # type: ignore[assignment]
                else:  # it knows which part of it compiles
                    network.compile()
            if distributed.world_size() > 1:
                gpu = [self.device] if self.device.type == "cuda" else None
                # See `_average_statistics`.
                network = DistributedDataParallel(network, device_ids=gpu, broadcast_buffers=False)
            self._network = network
        return self._network


@contextlib.contextmanager
def _too_few_are_errors(part: Batch) -> Iterator[None]:
    """Put into words what batch normalisation raises where it has one value of each channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch normalisation cannot train on {len(part.names)} image at a time: raise "
            "batch_size, or lower step.accumulate or processes"
        ) from error


def weights_in(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The model's weights in what `TrainStep.state_dict` gave.

    Returns:
        `averaged` where the run averages, and `raw`.
    """
    weights = {"raw": dict(checkpoint["model"])}
    if "ema" in checkpoint:
        prefix = "module."  # AveragedModel's; its counter of updates is without
        averaged = {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint["ema"].items()
            if name.startswith(prefix)
        }
        weights = {"averaged": averaged, **weights}
    return weights


@dataclass
class TrainingState:
    """How far a run is; goes into checkpoints."""

    step: int = 0
    """Steps taken, skipped ones included."""
    skipped_steps: int = 0
    """Steps without a finite loss."""
    skipped_in_a_row: int = 0
    """Of those, the last ones."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation with the highest `best_metric`."""
    best_step: int = 0
    """Steps taken at that evaluation."""
    cursors: dict[int, Cursor] = field(default_factory=dict)
    """Places in streamed shards, by slot; complete in checkpoints."""
    sums: dict[str, float] = field(default_factory=dict)
    """Losses added up since the last point of the curves."""
    summed_steps: int = 0
    """Steps in `sums`."""
