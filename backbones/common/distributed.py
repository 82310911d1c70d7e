"""Several processes that train one network: who this one is, and sums over all of them.

Started by torchrun, or by SLURM's srun with one task for each process. Without either there is one
process, and everything here is a plain function of it.
"""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed as dist

from backbones.common.device import resolve_device
from backbones.common.errors import UserError

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
    """Whether this is the process that writes files and reports progress."""
    return rank() == 0


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """Join the other processes, where there are any, until the block ends.

    Args:
        device: as for `resolve_device`. With several processes `auto` and `cuda` are the GPU with
            the process's number on its machine.

    Yields:
        The device of this process.

    Raises:
        UserError: no such device, or an environment that is neither torchrun's nor SLURM's.
    """
    place = _place(os.environ)
    if place is None:
        yield resolve_device(device)
        return
    name = device
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        name = f"cuda:{place.local_rank}"
    own = resolve_device(name)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # gloo beside NCCL carries what lies in the memory of the machine: flags, counts, checkpoints.
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=TIMEOUT)
    logger.info("process %d of %d on %s", place.rank, place.world_size, own)
    try:
        yield own
    finally:
        dist.destroy_process_group()


def sum_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Every value summed over all processes, which name the same ones; counts stay exact."""
    if world_size() == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor)
    return dict(zip(values, tensor.tolist(), strict=True))


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
    if is_main():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
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
        raise UserError(
            f"another of the {world_size()} processes was lost ({reason}): look at its messages, "
            "then continue with --resume true"
        ) from error


def _place(environment: Mapping[str, str]) -> _Place | None:
    """Who this process is, from what its launcher left in the environment; None if it is alone."""
    if "RANK" in environment and "WORLD_SIZE" in environment:  # torchrun
        return _Place(
            rank=_number(environment, "RANK"),
            world_size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
        )
    # Of a job step only: a batch script sees the job's SLURM_NTASKS, but is one process.
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        os.environ.setdefault("MASTER_ADDR", _first_host(environment))
        port = _SLURM_PORTS[_number(environment, "SLURM_JOB_ID") % len(_SLURM_PORTS)]
        os.environ.setdefault("MASTER_PORT", str(port))
        return _Place(
            rank=_number(environment, "SLURM_PROCID"),
            world_size=_number(environment, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environment, "SLURM_LOCALID"),
        )
    return None


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
