"""The loop that trains any network here."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn
from torch.utils.data import DataLoader

from backbones.common import distributed
from backbones.common.device import resolve_precision, set_tf32
from backbones.common.errors import UserError
from backbones.common.progress import TrainingProgress
from backbones.common.signals import StopSignals
from backbones.data.datasets import Cursor, ImageBatch
from backbones.data.sampler import EpochSampler
from backbones.data.streams import StreamedTraining
from backbones.data.workers import lost_workers_are_errors
from backbones.training.checkpoints import load_last_checkpoint, save_checkpoint
from backbones.training.config import TrainConfig
from backbones.training.recipe import lr_factor, scaled_lr
from backbones.training.run_folder import RunFolder
from backbones.training.step import Batch, LossFunction, StepConfig, TrainingState, TrainStep
from backbones.training.validation import Validation

Item = TypeVar("Item")

LOG_STEPS = 50
"""Steps that one point of the training curves averages over; an epoch's end closes one too."""

DRAW_SECONDS = 60.0
"""Shortest time between two pictures of the curves; the last epoch draws in any case."""

MAX_SKIPPED = 10
"""Steps without a finite loss, one after the other, that end a run that skips them."""

logger = logging.getLogger(__name__)


class NonFiniteLossError(UserError):
    """The loss or its gradient became infinite or not a number."""


NO_DATA: Mapping[str, Any] = MappingProxyType({})


def fit(
    model: nn.Module,
    loader: DataLoader | StreamedTraining,
    loss_fn: LossFunction,
    config: TrainConfig,
    run: RunFolder,
    validation: Validation | None = None,
    data: Mapping[str, Any] = NO_DATA,
) -> TrainingState:
    """Train a model; resume where `run.resume` is set and the run has a checkpoint.

    Before every step torch's generators are seeded by (seed, step, rank), so a resumed run takes
    the same steps as an unbroken one, bit for bit on the CPU on as many processes. Checkpoints are
    written after every epoch, every `checkpoint_minutes`, and on SIGTERM or Ctrl-C, which then end
    the run.

    With several processes (see `backbones.common.distributed`) all call this alike: each takes its
    share of every batch, gradients and losses are averaged, and the main process writes the files.

    Args:
        model: on its device; left there with the raw weights of the last step.
        loader: as made by `training_loader`: its sampler gives epochs, seed and order. Or shards.
        loss_fn: see `TrainStep`. It moves the batch (see `Batch`) to the model's device, and calls
            the network that it is given, which is the model or a wrapper around it.
        config: of the run; epochs, images in a step and seed are those of the loader's sampler.
        run: folder, entered.
        validation: what becomes of the weights after an epoch; None for nothing.
        data: what tells the training data: `classes`, another of which a resumed run refuses, and
            `annotations` and `validation annotations`, digests, of another of which it warns.

    Returns:
        The state after the last step, with the metrics.

    Raises:
        NonFiniteLossError: names step, term and files.
        UserError: the checkpoint does not fit the model, the data or the seed, or is of a later
            epoch than the last; another process was lost.
        SystemExit: SIGTERM came; the code is 143.
        KeyboardInterrupt: Ctrl-C came.
    """
    sampler = loader.sampler if isinstance(loader, StreamedTraining) else loader.batch_sampler
    if not isinstance(sampler, EpochSampler):
        raise TypeError("fit needs a loader made by training_loader")
    config.step.check_batch_size(sampler.batch_size)
    optim = config.optim
    precision = resolve_precision(config.precision, next(model.parameters()).device)
    set_tf32(precision == "tf32")
    train_step = TrainStep(model, loss_fn, optim, config.step, precision, sampler.seed)
    identity = {key: getattr(sampler, key) for key in ("seed", "num_examples", "global_batch")}
    identity |= {"precision": precision, "parts": _parts(sampler, config.step), **data}
    state = _restore(run, train_step, identity) if run.resume else TrainingState()
    if state.step > sampler.total_steps:
        raise UserError(
            f"cannot resume {run.path}: it has taken {state.step} steps, and {sampler.epochs} "
            f"epochs are {sampler.total_steps}: give more epochs"
        )
    if isinstance(loader, StreamedTraining):
        loader.cursors = state.cursors
    sampler.start_step = state.step
    run.open_curves(state.step)
    base_lr = scaled_lr(optim, sampler.global_batch)
    validation = Validation() if validation is None else validation
    skipped: set[str] = set()
    model.train()

    with (
        StopSignals() as stop,
        TrainingProgress("train", sampler.total_steps, state.step) as progress,
        distributed.lost_processes_are_errors(),
        lost_workers_are_errors(),
    ):
        batches = _timed(loader)
        checkpointed = time.monotonic()
        drawn = -math.inf
        while state.step < sampler.total_steps:
            batch, waited = next(batches)
            lr = base_lr * lr_factor(
                state.step, optim, sampler.steps_per_epoch, sampler.total_steps
            )
            values = train_step.accumulate_gradients(batch, state.step)
            overdue = time.monotonic() - checkpointed > 60 * config.checkpoint_minutes
            values, stopping, overdue = _agree(values, stop, overdue)
            if _is_usable(values, train_step, batch, state):
                train_step.apply_gradients(lr)
                for name, value in values.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value
                state.summed_steps += 1
            state.step += 1
            if isinstance(batch, ImageBatch) and batch.cursor is not None:
                state.cursors[batch.cursor["slot"]] = batch.cursor

            _warn_of_skipped(batch.skipped, skipped)
            epoch = state.step / sampler.steps_per_epoch
            ends_epoch = state.step % sampler.steps_per_epoch == 0
            if (ends_epoch or state.step % LOG_STEPS == 0) and state.summed_steps:
                means = {name: total / state.summed_steps for name, total in state.sums.items()}
                run.record(state.step, epoch, means | {"lr": lr})
                state.sums, state.summed_steps = {}, 0
            notes = f"epoch {math.ceil(epoch)}/{sampler.epochs} · loss {values['loss/total']:.4f}"
            images = len(batch.names) * sampler.world_size
            progress.update(state.step, images, waited, notes)

            is_last = state.step == sampler.total_steps
            if ends_epoch and (round(epoch) % config.epochs_between_scores == 0 or is_last):
                validation.after_epoch(run, train_step, state, sampler)
                # A picture takes half a second, which short epochs should not pay each time.
                if is_last or time.monotonic() - drawn > DRAW_SECONDS:
                    run.draw_curves()
                    drawn = time.monotonic()
            elif ends_epoch and state.step == sampler.steps_per_epoch and validation.evaluate:
                every = config.epochs_between_scores
                logger.info("scores come every %d epochs and after the last: eval_every", every)
            if ends_epoch or overdue or stopping:
                state.cursors = _of_all_processes(state.cursors)
                for messages in distributed.gather(sorted(skipped)):
                    _warn_of_skipped(messages, skipped)
                if distributed.is_main():
                    content = {**train_step.state_dict(), **identity, "state": asdict(state)}
                    content["config"] = run.config
                    save_checkpoint(run.checkpoints, state.step, content, config.keep_checkpoints)
                checkpointed = time.monotonic()
            if stopping:
                logger.info(
                    *("stopped at step %d; continue with --run %s --resume", state.step),
                    run.path,
                )
                stop.leave()
        # What came during the last score, or of a run that was finished before.
        if _agree({}, stop, False)[1]:
            stop.leave()
    if skipped:
        logger.warning("%d training images could not be read and were skipped", len(skipped))
    if state.skipped_steps:
        logger.warning("%d steps had no finite loss and were skipped", state.skipped_steps)
    return state


def _of_all_processes(cursors: dict[int, Cursor]) -> dict[int, Cursor]:
    """The newest of each slot: a process moves on in its own, and knows others from a resume."""
    merged: dict[int, Cursor] = {}
    for part in distributed.gather(cursors):
        for slot, cursor in part.items():
            if cursor["batches"] >= merged.get(slot, cursor)["batches"]:
                merged[slot] = cursor
    return merged


def _agree(
    values: dict[str, float], stop: StopSignals, overdue: bool
) -> tuple[dict[str, float], bool, bool]:
    """The means of the values over all processes; whether any of them stops; whether the main
    process wants a checkpoint. Processes get signals, and their clocks go, at different steps."""
    flags = {
        "stop": float(stop.received is not None),
        "overdue": float(overdue and distributed.is_main()),
    }
    sums = distributed.sum_over_processes(values | flags)
    stopping, overdue = sums.pop("stop") > 0, sums.pop("overdue") > 0
    return {k: v / distributed.world_size() for k, v in sums.items()}, stopping, overdue


def _is_usable(
    values: Mapping[str, float], train_step: TrainStep, batch: Batch, state: TrainingState
) -> bool:
    """Whether loss and gradient are finite; if not, stops or skips as configured.

    All processes decide alike, for the values are means over them.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        state.skipped_in_a_row = 0
        return True
    if bad == ["grad_norm"] and train_step.lower_scale():
        return False
    train_step.drop_gradients()
    names = [name for part in distributed.gather(batch.names) for name in part]
    if distributed.is_main():
        logger.error("images of step %d: %s", state.step, ", ".join(names))
    problem = f"step {state.step}: {bad[0]} is {values[bad[0]]}"
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    if train_step.config.on_non_finite == "skip" and state.skipped_in_a_row <= MAX_SKIPPED:
        logger.warning("%s: skipped (%d so far)", problem, state.skipped_steps)
        return False
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    raise NonFiniteLossError(
        f"{problem} for the images {shown} (all are in log.txt): "
        "lower optim.lr or optim.weight_decay, set optim.clip_grad, or look at the images and "
        "their labels"
    )


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
            message = str(error).rpartition("backbones.common.errors.UserError: ")[2]
            raise UserError(message.strip()) from error
        yield item, time.perf_counter() - asked


def _warn_of_skipped(messages: Iterable[str], skipped: set[str]) -> None:
    """Warn of unreadable images that are not among those warned of, which they join."""
    for message in messages:
        if message not in skipped:
            skipped.add(message)
            logger.warning("skipped image %d: %s", len(skipped), message)


def _parts(sampler: EpochSampler, config: StepConfig) -> str:
    """What the images of a step are divided into."""
    processes, parts = sampler.world_size, config.accumulate
    return f"{processes} process{'es' if processes > 1 else ''}" + (
        f" of {parts} parts" if parts > 1 else ""
    )


def _restore(run: RunFolder, train_step: TrainStep, identity: Mapping[str, Any]) -> TrainingState:
    """The state of the last checkpoint, which the main process reads for all."""
    checkpoint = distributed.call_on_main(lambda: load_last_checkpoint(run.checkpoints))
    if checkpoint is None:
        logger.info("%s has no checkpoint yet: starting from the beginning", run.path)
        return TrainingState()
    run.refuse_another(checkpoint.get("config"))
    for key, value in identity.items():
        if checkpoint.get(key, value) == value:
            continue
        if key in ("annotations", "validation annotations"):
            part = "training" if key == "annotations" else "validation"
            logger.warning(
                "names of images, boxes or labels of the %s split are not those that the run "
                "began with: the result will differ from an unbroken run's",
                part,
            )
            continue
        if key == "parts":
            logger.warning(
                "resuming with a step in %s, the run began with %s: batches are normalised, and "
                "random numbers drawn, by part, so the result will differ from an unbroken run's",
                *(value, checkpoint.get(key)),
            )
            continue
        raise UserError(
            f"cannot resume {run.path}: {key} was {checkpoint.get(key)} and is {value} now: "
            "give the seed, data, images in a step and precision that the run began with"
        )
    try:
        train_step.load_state_dict(checkpoint)
    except UserError as error:
        raise UserError(f"cannot resume {run.path}: {error}") from error
    state = TrainingState(**checkpoint["state"])
    logger.info("resumed %s at step %d", run.path, state.step)
    return state
