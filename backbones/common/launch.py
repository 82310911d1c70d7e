"""Several processes for one training, started by one command: on a CPU one for each core.

Threads of one process wait for each other many times in a step, so that another program on one of
the cores slows all of them down many times over; processes meet at the end of a step. torch starts
them, and they find each other as those of torchrun do (see `backbones.common.distributed`).
"""

import logging
import math
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import start_processes

from backbones.common import distributed
from backbones.common.cli import prepare_process
from backbones.common.device import resolve_device
from backbones.common.early_log import take_early_log
from backbones.common.errors import LostProcessError, UserError

Config = TypeVar("Config")
Result = TypeVar("Result")

Processes = Literal["auto"] | int

MOST_PROCESSES = 8
"""That `auto` starts: each has the network and the annotations in memory."""

GRACE = 15.0
"""Seconds for processes to end by themselves after one has failed, or a second Ctrl-C."""

_PASSED_ON = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


def process_count(
    processes: Processes, device: str, batch_size: int, least: int, accumulate: int = 1
) -> int:
    """How many processes to train in; 1 where torchrun or srun has started this one.

    Args:
        processes: a number, or `auto`: on a CPU as many as torch would use threads, but at most 8,
            and each with an equal part of at least `least` images at a time; on a GPU 1.
        device: as for `resolve_device`.
        batch_size: images in a step, of all processes together.
        least: batch normalisation sees the images of one process at a time, and suffers from fewer.
        accumulate: parts that each takes its images in, one after the other.

    Raises:
        UserError: no such device, or a number that does not divide the images of a step.
    """
    device_type = resolve_device(device).type
    if distributed.is_launched():
        return 1
    if processes != "auto":
        distributed.equal_part(batch_size, processes, accumulate)
        return processes
    if device_type != "cpu":
        return 1
    wanted = min(torch.get_num_threads(), MOST_PROCESSES)
    most = min(wanted, batch_size // (least * accumulate))
    count = max((n for n in range(1, most + 1) if batch_size % (n * accumulate) == 0), default=1)
    if count < wanted:
        logger.info(
            "processes: %d, not %d, for all get as many of the %d images of a step, at least %d",
            *(count, wanted, batch_size, least),
        )
    return count


def run_in_processes(function: Callable[[Config], Result], config: Config, count: int) -> Result:
    """Call a function in several new processes at once, which share torch's threads; wait for them.

    Where `count` is 1 it is called in this process. Otherwise each new one imports the program that
    calls this, whose main module therefore needs its `if __name__ == "__main__":`. Ctrl-C and
    SIGTERM are passed on. When this process is killed, the others stop as by Ctrl-C.

    Args:
        function: to be imported from its module, as pickle does; it enters
            `distributed.processes`.
        config: what to call it with, to be pickled.
        count: how many processes.

    Returns:
        What the function returns in the main process.

    Raises:
        UserError: as raised in one of them, or one was lost; the others have been ended.
        KeyboardInterrupt: they have ended so.
        SystemExit: they have ended so, or by a defect whose traceback has been shown.
    """
    if count == 1:
        return function(config)
    return _conclude(_run(function, config, count))


@dataclass(frozen=True)
class _Job:
    """What a process needs to begin, and where it leaves how it ended."""

    function: Callable[[Any], Any]
    config: Any
    count: int
    threads: int
    start_method: str
    port: int
    folder: Path
    early: list[logging.LogRecord]


class _Signal(NamedTuple):
    number: int
    time: float


class _Ending(NamedTuple):
    """How a process ended: with a result, an exception, the text of a traceback, an exit code."""

    kind: Literal["result", "error", "stop", "defect", "lost", "died", "killed"]
    value: Any = None


def _work(rank: int, job: _Job) -> None:
    """What a new process does. It begins with the signals blocked, lest one break an import."""
    # Out of the terminal's group: its Ctrl-C comes once, by way of the process that started this.
    os.setpgid(0, 0)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(job.count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job.port),
        # The main process is not to open the port itself.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    if "lo" in (name for _, name in socket.if_nameindex()):
        # By the address of the machine's name, processes do not find each other on every network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Otherwise loaders would start their workers as this process was started, in seconds.
    multiprocessing.set_start_method(job.start_method, force=True)
    torch.set_num_threads(job.threads)
    prepare_process(job.early if rank == 0 else ())
    # A program that a script has put into the background is born deaf to Ctrl-C, and so were this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        result = job.function(job.config)
        ending = _Ending("result", result if rank == 0 else None)
    except LostProcessError as error:
        ending = _Ending("lost", error)
    except UserError as error:
        ending = _Ending("error", error)
    except (KeyboardInterrupt, SystemExit) as error:
        ending = _Ending("stop", error)
    except Exception as error:
        # Without this function.
        own = error.__traceback__ and error.__traceback__.tb_next
        ending = _Ending("defect", "".join(traceback.format_exception(type(error), error, own)))
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        data = pickle.dumps(ending)
    except Exception:  # of a result that cannot be handed over
        data = pickle.dumps(_Ending("defect", traceback.format_exc()))
    (job.folder / str(rank)).write_bytes(data)


@contextmanager
def _started(job: _Job) -> Iterator[tuple[list[BaseProcess], list[_Signal]]]:
    """The processes of a job, and the signals that were passed on to them, which become more."""
    received: list[_Signal] = []
    processes: list[BaseProcess] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(_Signal(number, time.monotonic()))
        for process in processes:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    handlers: dict[int, Any] = {}
    resource_tracker.ensure_running()  # it would unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        with _environment("OMP_NUM_THREADS", str(job.threads)):
            context = start_processes(_work, (job,), job.count, join=False)
        processes += context.processes
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield processes, received
    finally:
        for process in processes:
            process.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _environment(key: str, value: str) -> Iterator[None]:
    """A variable that processes started within the block have."""
    former = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        if former is None:
            del os.environ[key]
        else:
            os.environ[key] = former


def _run(function: Callable[[Any], Any], config: Any, count: int) -> list[_Ending]:
    """How the processes ended, by rank."""
    threads = max(1, torch.get_num_threads() // count)
    logger.info("starting %d processes, threads in each: %d", count, threads)
    # Held here, so that nobody else can have taken the port when the processes come to it.
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    with tempfile.TemporaryDirectory(prefix="processes_") as folder:
        start_method = multiprocessing.get_start_method()
        job = _Job(
            *(function, config, count, threads, start_method, store.port, Path(folder)),
            early=take_early_log(),
        )
        with _started(job) as (processes, received):
            return _wait(job, processes, received)


def _wait(
    job: _Job, processes: Sequence[BaseProcess], received: Sequence[_Signal]
) -> list[_Ending]:
    running, endings = dict(enumerate(processes)), {}
    deadline = math.inf
    while running:
        connection.wait([process.sentinel for process in running.values()], timeout=1.0)
        for rank in [rank for rank, process in running.items() if not process.is_alive()]:
            endings[rank] = _ending(job, rank, running.pop(rank).exitcode, received)
            if endings[rank].kind not in ("result", "stop"):
                deadline = min(deadline, time.monotonic() + GRACE)
        # As `StopSignals`: a second Ctrl-C acts at once, but one right after the first is the same.
        times = [one.time for one in received if one.number == signal.SIGINT]
        if times and times[-1] > times[0] + 1:
            deadline = min(deadline, times[-1] + GRACE)
        if time.monotonic() > deadline:
            for rank, process in running.items():
                process.kill()
                process.join()
                endings[rank] = _Ending("killed")
            break
    return [endings[rank] for rank in range(job.count)]


def _ending(job: _Job, rank: int, code: int | None, received: Sequence[_Signal]) -> _Ending:
    if code == 0:
        with suppress(FileNotFoundError):
            return pickle.loads((job.folder / str(rank)).read_bytes())
    for number, stop in ((signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143))):
        if code == -number and any(one.number == number for one in received):
            return _Ending("stop", stop)
    return _Ending("died", code)


def _conclude(endings: Sequence[_Ending]) -> Any:
    """The result, or what was the cause of all other endings raised."""
    for kind in ("died", "error", "stop", "defect", "lost", "killed"):
        for rank, ending in enumerate(endings):
            if ending.kind != kind:
                continue
            if kind == "died":
                raise UserError(_obituary(rank, len(endings), ending.value))
            if kind == "defect":
                sys.stderr.write(ending.value)
                raise SystemExit(1)
            raise KeyboardInterrupt if kind == "killed" else ending.value
    return endings[0].value


def _obituary(rank: int, count: int, code: int) -> str:
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ", as it happens where memory runs out"
    return f"process {rank} of {count} {how}: continue with --resume"
