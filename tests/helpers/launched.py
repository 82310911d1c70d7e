"""What the processes of `test_launch.py` do; each is called with a folder to leave notes in."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from backbones.common import distributed
from backbones.common.errors import UserError
from backbones.common.signals import StopSignals
from backbones.data.sampler import EpochSampler, training_loader
from helpers.tiny_run import BATCH, EXAMPLES, NoisyShapes, collate


def describe(folder: Path) -> list[dict[str, Any]]:
    with distributed.processes("cpu"):
        place = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        return distributed.gather(place | {"threads": torch.get_num_threads(), "pid": os.getpid()})


def names_by_step(folder: Path) -> list[list[str]]:
    """The files of each step, of all processes; one of them reads with a worker."""
    with distributed.processes("cpu"):
        rank, world_size = distributed.rank(), distributed.world_size()
        sampler = EpochSampler(
            *(EXAMPLES, distributed.own_part(BATCH)),
            **{"epochs": 2, "seed": 3, "rank": rank, "world_size": world_size},
        )
        loader = training_loader(NoisyShapes(), sampler, workers=rank, collate_fn=collate)
        parts = distributed.gather([batch.names for batch in loader])
        return [sorted(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def second_one(action: Callable[[], Any]) -> Callable[[Path], None]:
    """The second process does it, while the first waits for it in a sum."""

    def work(folder: Path) -> None:
        with distributed.processes("cpu"), distributed.lost_processes_are_errors():
            if distributed.rank() == 1:
                action()
            distributed.sum_over_processes({"a": 1.0})

    return work


def refuse() -> None:
    raise UserError("0.jpg: cannot be read")


def divide() -> float:
    return 1 / 0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path) -> None:
    """Steps that take a while, until a signal comes."""
    with distributed.processes("cpu"), StopSignals() as stop:
        (folder / f"pid_{distributed.rank()}").write_text(str(os.getpid()))
        while not distributed.sum_over_processes({"stop": float(stop.received is not None)})[
            "stop"
        ]:
            time.sleep(0.02)
        time.sleep(0.2)
        (folder / f"checkpoint_{distributed.rank()}").touch()
        stop.leave()


def hang(folder: Path) -> None:
    """The second fails, the first does not notice."""
    with distributed.processes("cpu"):
        (folder / f"pid_{distributed.rank()}").write_text(str(os.getpid()))
        if distributed.rank() == 1:
            refuse()
        time.sleep(100)


def read(folder: Path) -> None:
    """No step is under way, so that Ctrl-C acts at once."""
    with distributed.processes("cpu"):
        (folder / f"pid_{distributed.rank()}").write_text(str(os.getpid()))
        time.sleep(100)


def do_not_listen(folder: Path) -> None:
    with distributed.processes("cpu"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        (folder / f"pid_{distributed.rank()}").write_text(str(os.getpid()))
        time.sleep(100)
