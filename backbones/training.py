"""The loop that trains any network here."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from backbones.checkpoints import load_last_checkpoint, save_checkpoint
from backbones.errors import UserError
from backbones.order import EpochSampler, derive_seed
from backbones.progress import TrainingProgress
from backbones.recipe import OptimConfig, build_ema, build_optimizer, lr_factor
from backbones.runs import RunFolder
from backbones.signals import StopSignals

Item = TypeVar("Item")

LOG_STEPS = 50
"""Steps that one point of the training curves averages over; an epoch's end closes one too."""

DRAW_SECONDS = 60.0
"""Shortest time between two pictures of the curves; the last epoch draws in any case."""

logger = logging.getLogger(__name__)


class Batch(Protocol):
    """What `fit` asks of a batch; the rest is between the data and the loss function."""

    @property
    def names(self) -> list[str]:
        """The files the examples come from, one for each."""

    @property
    def skipped(self) -> list[str]:
        """Error messages of unreadable images that others stand in for."""


class NonFiniteLossError(UserError):
    """The loss or its gradient became infinite or not a number."""


@dataclass
class TrainingState:
    """How far a run is; goes into checkpoints."""

    step: int = 0
    """Steps taken."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation with the highest `best_metric`."""
    best_step: int = 0
    """Steps taken at that evaluation."""
    sums: dict[str, float] = field(default_factory=dict)
    """Losses added up since the last point of the curves."""
    summed_steps: int = 0
    """Steps in `sums`."""


def fit(
    model: nn.Module,
    loader: DataLoader,
    loss_fn: Callable[[nn.Module, Any], Mapping[str, Tensor]],
    optim: OptimConfig,
    run: RunFolder,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    eval_every: int = 1,
    best_metric: str | None = None,
    save: Callable[[Path, nn.Module, dict[str, float]], None] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoint_minutes: float = 10.0,
) -> TrainingState:
    """Train a model; resume where `run.resume` is set and the run has a checkpoint.

    Before every step torch's generators are seeded by (seed, step), so a resumed run takes the
    same steps as an unbroken one, bit for bit on the CPU. Checkpoints are written after every
    epoch, every `checkpoint_minutes`, and on SIGTERM or Ctrl-C, which then end the run.

    Args:
        model: on its device; left there with the raw weights of the last step.
        loader: as made by `training_loader`: its sampler gives epochs, seed and order.
        loss_fn: named terms of the loss, each a scalar; their sum is minimised. It moves the
            batch (see `Batch`) to the model's device.
        optim: optimiser, schedule, weight averaging.
        run: folder, entered.
        evaluate: metrics of a model in eval mode (with averaged weights where `optim` averages),
            recorded as `val/<name>`; run without gradients.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        best_metric: the metric that chooses the best weights, higher is better.
        save: writes weights for use: `last.safetensors` at each evaluation, `best.safetensors`
            when it is the best so far. Given the path, the evaluated model and its metrics.
        precision: `bf16` runs the loss function under autocast.
        checkpoint_minutes: longest time between checkpoints.

    Returns:
        The state after the last step, with the metrics.

    Raises:
        NonFiniteLossError: names step, term and files.
        UserError: the checkpoint does not fit the model, the data or the seed.
        SystemExit: SIGTERM came; the code is 143.
        KeyboardInterrupt: Ctrl-C came.
    """
    sampler = loader.batch_sampler
    if not isinstance(sampler, EpochSampler):
        raise TypeError("fit needs a loader made by training_loader")
    device = next(model.parameters()).device
    optimizer = build_optimizer(model, optim)
    ema = build_ema(model, optim.ema_decay) if optim.ema_decay is not None else None
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if ema is not None:
        parts["ema"] = ema
    identity = ("seed", "num_examples", "batch_size", "world_size")
    data = {key: getattr(sampler, key) for key in identity}
    data |= {f"optim.{key}": value for key, value in asdict(optim).items()}
    state = _restore(run, parts, data) if run.resume else TrainingState()
    sampler.start_step = state.step
    run.open_curves(state.step)
    evaluated_model = model if ema is None else ema.module
    skipped: set[str] = set()
    model.train()

    with (
        StopSignals() as stop,
        TrainingProgress("train", sampler.total_steps, state.step) as progress,
    ):
        checkpointed = time.monotonic()
        drawn = -math.inf
        for batch, waited in _timed(loader):
            factor = lr_factor(state.step, optim, sampler.steps_per_epoch, sampler.total_steps)
            for group in optimizer.param_groups:
                group["lr"] = optim.lr * factor * group.get("lr_scale", 1.0)
            torch.manual_seed(derive_seed(sampler.seed, state.step))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                terms = loss_fn(model, batch)
            values = _descend(terms, optimizer, optim.clip_grad, batch, state.step)
            if ema is not None:
                ema.update_parameters(model)
            state.step += 1

            for name, value in values.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
            state.summed_steps += 1
            _warn_of_skipped(batch, skipped)
            epoch = state.step / sampler.steps_per_epoch
            ends_epoch = state.step % sampler.steps_per_epoch == 0
            if ends_epoch or state.step % LOG_STEPS == 0:
                means = {name: total / state.summed_steps for name, total in state.sums.items()}
                run.record(state.step, epoch, means | {"lr": optim.lr * factor})
                state.sums, state.summed_steps = {}, 0
            notes = f"epoch {math.ceil(epoch)}/{sampler.epochs} · loss {values['loss/total']:.4f}"
            progress.update(state.step, len(batch.names), waited, notes)

            if ends_epoch and (round(epoch) % eval_every == 0 or round(epoch) == sampler.epochs):
                if evaluate is not None:
                    state.metrics = _evaluate(evaluate, evaluated_model)
                    model.train()
                    run.record(state.step, epoch, {f"val/{k}": v for k, v in state.metrics.items()})
                    listed = ", ".join(f"{k} {v:.4f}" for k, v in state.metrics.items())
                    logger.info("epoch %d/%d: %s", round(epoch), sampler.epochs, listed)
                if save is not None:
                    save(run.path / "last.safetensors", evaluated_model, state.metrics)
                if best_metric is not None and _is_better(state, best_metric):
                    state.best_metrics, state.best_step = state.metrics, state.step
                    if save is not None:
                        save(run.path / "best.safetensors", evaluated_model, state.metrics)
                # A picture takes half a second, which short epochs should not pay each time.
                if state.step == sampler.total_steps or time.monotonic() - drawn > DRAW_SECONDS:
                    run.draw_curves()
                    drawn = time.monotonic()
            overdue = time.monotonic() - checkpointed > 60 * checkpoint_minutes
            if ends_epoch or overdue or stop.received is not None:
                _checkpoint(run, parts, data, state)
                checkpointed = time.monotonic()
            if stop.received is not None:
                logger.info("stopped at step %d; continue with --resume true", state.step)
                stop.leave()
    if skipped:
        logger.warning("%d training images could not be read and were skipped", len(skipped))
    return state


def _descend(
    terms: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    clip_grad: float | None,
    batch: Batch,
    step: int,
) -> dict[str, float]:
    """One step down the gradient, if all is finite; the loss, its terms and the gradient's norm."""
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    values = {f"loss/{name}": term.item() for name, term in terms.items()}
    values["loss/total"] = loss.item()
    _check_finite(values, step, batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip_grad is None else clip_grad)
    values["grad_norm"] = norm.item()
    _check_finite({"grad_norm": values["grad_norm"]}, step, batch)
    optimizer.step()
    return values


def _timed(items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """The items, each with the seconds that it was waited for."""
    iterator = iter(items)
    while True:
        asked = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        except UserError as error:
            # A loader's worker wraps its errors in the text of a traceback.
            message = str(error).rpartition("backbones.errors.UserError: ")[2]
            raise UserError(message.strip()) from error
        yield item, time.perf_counter() - asked


def _evaluate(
    evaluate: Callable[[nn.Module], dict[str, float]], model: nn.Module
) -> dict[str, float]:
    model.eval()
    # Not inference_mode: what a model caches under it could not take part in training later.
    with torch.no_grad():
        return {name: float(value) for name, value in evaluate(model).items()}


def _is_better(state: TrainingState, metric: str) -> bool:
    def rank(metrics: dict[str, float]) -> float:
        value = metrics.get(metric, math.nan)
        return -math.inf if math.isnan(value) else value

    return not state.best_metrics or rank(state.metrics) > rank(state.best_metrics)


def _check_finite(values: Mapping[str, float], step: int, batch: Batch) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            logger.error("images of step %d: %s", step, ", ".join(batch.names))
            shown = ", ".join(batch.names[:4]) + (", ..." if len(batch.names) > 4 else "")
            raise NonFiniteLossError(
                f"step {step}: {name} is {value} for the images {shown} (all are in log.txt): "
                "lower optim.lr, set optim.clip_grad, or look at the images and their labels"
            )


def _warn_of_skipped(batch: Batch, skipped: set[str]) -> None:
    for message in batch.skipped:
        if message not in skipped:
            skipped.add(message)
            logger.warning("skipped image %d: %s", len(skipped), message)


def _checkpoint(
    run: RunFolder, parts: Mapping[str, Any], data: Mapping[str, Any], state: TrainingState
) -> None:
    tensors = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(run.checkpoints, state.step, {**tensors, **data, "state": asdict(state)})


def _restore(run: RunFolder, parts: Mapping[str, Any], data: Mapping[str, Any]) -> TrainingState:
    checkpoint = load_last_checkpoint(run.checkpoints)
    if checkpoint is None:
        logger.info("%s has no checkpoint yet: starting from the beginning", run.path)
        return TrainingState()
    for key, value in data.items():
        if checkpoint.get(key) != value:
            raise UserError(
                f"cannot resume {run.path}: {key} was {checkpoint.get(key)} and is {value} now: "
                "give the seed, data, batch size and optimiser that the run began with"
            )
    for name, part in parts.items():
        try:
            part.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"cannot resume {run.path}: its {name} does not fit this configuration: give the "
                "one that the run began with"
            ) from error
    state = TrainingState(**checkpoint["state"])
    logger.info("resumed %s at step %d", run.path, state.step)
    return state
