"""Several processes at one work: who this one is, and sums over all of them.

Started by torchrun, by SLURM's srun with one task for each process, or by
`backbones.common.launch`. Without any there is one process, and everything here is a plain function
of it.
"""

import logging
import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from backbones.common.device import resolve_device
from backbones.common.errors import LostProcessError, UserError

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)
"""For which processes wait for each other: one that died ends the others, if torchrun does not."""

_SLURM_PORTS = range(20000, 60000)

logger = logging.getLogger(__name__)


class _Place(NamedTuple):
    rank: int
    world_size: int
    local_rank: int


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and reports, also before and after `processes`;
    raises as these for the environment."""
    return (dist.get_rank() if dist.is_initialized() else _launched_rank(os.environ)) == 0


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several; raises as `processes`."""
    place = _place(os.environ)
    return place is not None and place.world_size > 1


def own_part(batch_size: int, accumulate: int = 1) -> int:
    """How many of the images of a step are this process's; raises as `equal_part`."""
    return equal_part(batch_size, world_size(), accumulate)


def equal_part(batch_size: int, count: int, accumulate: int = 1) -> int:
    """Images of a step for each of several processes, which take them in so many equal parts;
    raises `UserError` where they do not divide equally."""
    if batch_size % (count * accumulate):
        parts = f" with step.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"batch_size {batch_size}, the images in a step of all processes together, cannot be "
            f"divided among {count}{parts}: change one or the other"
        )
    return batch_size // count


@contextmanager
def processes(device: str, timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the other processes, where there are any, until the block ends.

    In the block only the main process logs and warns; the others log errors alone.

    Args:
        device: as for `resolve_device`. With several processes `auto` and `cuda` are the GPU with
            the process's number on its machine.
        timeout: for which one waits for the others.

    Yields:
        The device of this process.

    Raises:
        UserError: no such device, or an environment that is neither torchrun's nor SLURM's.
    """
    place = _place(os.environ)
    if place is None:
        yield resolve_device(device)
        return
    if place.world_size > 1 and ":" in device:
        raise UserError(
            f"device {device} is for one process, {place.world_size} were started: take cuda or "
            "auto, which give each its own"
        )
    name = device
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        name = f"cuda:{place.local_rank}"
    own = resolve_device(name)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # gloo beside NCCL carries what lies in the memory of the machine: flags, counts, checkpoints.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    _join(place, backend, timeout)
    try:
        with nullcontext() if is_main() else _errors_alone():
            logger.info("%d processes, the main one on %s", place.world_size, own)
            yield own
    finally:
        dist.destroy_process_group()


def _join(place: _Place, backend: str, timeout: timedelta) -> None:
    if is_main() and _is_srun(os.environ) and not _is_torchrun(os.environ):
        # In an interactive step of several tasks there is often this one alone.
        logger.info(
            "waiting for %d more of %d processes of srun's step; without SLURM_STEP_NUM_TASKS in "
            "the environment this one works alone",
            *(place.world_size - 1, place.world_size),
        )
    try:
        with _interruptible():
            dist.init_process_group(
                backend, rank=place.rank, world_size=place.world_size, timeout=timeout
            )
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the {place.world_size} processes did not come together: {reason}"
        ) from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process at once: Python would hear of it when torch has done waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextmanager
def _errors_alone() -> Iterator[None]:
    root = logging.getLogger()
    former = root.level
    root.setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        finally:
            root.setLevel(former)


def sum_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Every value summed over all processes, which name the same ones; counts stay exact."""
    if world_size() == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype and device, here and in all processes, by their means over them.

    All processes get the same bits. The tensors travel together.
    """
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def gather(value: Value) -> list[Value]:
    """The values of all processes by rank; any that pickle takes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def call_on_main(function: Callable[[], Value]) -> Value:
    """What a function returns, or the `UserError` it raises, in the main process alone."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    defect: Exception | None = None
    if is_main():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
        except Exception as error:  # the others would wait for half an hour
            defect, outcome[1] = error, f"the main process failed: {error}"
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if defect is not None:
        raise defect
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def require_one_process(what: str) -> None:
    """Raise `UserError` where a launcher has started several processes.

    To be called before any of them joins the others, by what trains several networks in turn.
    """
    place = _place(os.environ)
    if place is not None and place.world_size > 1:
        raise UserError(
            f"{what} runs in one process, {place.world_size} were started: start it by python"
        )


@contextmanager
def lost_processes_are_errors() -> Iterator[None]:
    """Turn the failures of communication that a dead process causes in the others into one line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if world_size() == 1 or not (
            isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text
        ):
            raise
        reason = text.partition("\n")[0]
        raise LostProcessError(
            f"another of the {world_size()} processes was lost ({reason}): look at its messages, "
            "then start again, with --resume where the command has it"
        ) from error


def _place(environment: Mapping[str, str]) -> _Place | None:
    """Who this process is, from what its launcher left in the environment; None if it is alone."""
    if _is_torchrun(environment):
        return _Place(
            rank=_launched_rank(environment),
            world_size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
        )
    if _is_srun(environment):
        os.environ.setdefault("MASTER_ADDR", _first_host(environment))
        port = _SLURM_PORTS[_number(environment, "SLURM_JOB_ID") % len(_SLURM_PORTS)]
        os.environ.setdefault("MASTER_PORT", str(port))
        return _Place(
            rank=_launched_rank(environment),
            world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environment, "SLURM_LOCALID"),
        )
    return None


def _launched_rank(environment: Mapping[str, str]) -> int:
    """Number that a launcher gave this process; 0 where it is alone."""
    if _is_torchrun(environment):
        return _number(environment, "RANK")
    return _number(environment, "SLURM_PROCID") if _is_srun(environment) else 0


def _is_torchrun(environment: Mapping[str, str]) -> bool:
    return "RANK" in environment and "WORLD_SIZE" in environment


def _is_srun(environment: Mapping[str, str]) -> bool:
    # Of a job step only: a batch script sees the job's SLURM_NTASKS, but is one process.
    return _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1


def _number(environment: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = environment.get(key, "" if default is None else str(default))
    if not text.isdigit():
        raise UserError(f"environment variable {key}: expected a number, got {text!r}")
    return int(text)


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    if not any(character in nodes for character in "[,"):
        return nodes
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot list the hosts of {nodes!r} with scontrol: set MASTER_ADDR to the first one"
        ) from error
    return listed.stdout.split()[0]
