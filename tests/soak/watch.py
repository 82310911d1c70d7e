"""What a command holds while it runs: memory, open files, processes, shared memory."""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Held:
    """What a command and its children hold at one moment; memory in bytes, shared pages shared."""

    memory: float
    files: float
    processes: float
    shared_memory: float


def tool(name: str, *arguments: object) -> list[str]:
    """The command line of `tools/NAME.py`."""
    return [sys.executable, "-m", f"tools.{name}", *map(str, arguments)]


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A command of one thread a process, its output going to a file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def watch(
    command: Sequence[str],
    log: Path,
    begun: Path,
    every: float,
    *,
    code: int = 0,
    seconds: float = math.inf,
) -> list[Held]:
    """Run a command to its end, or until Ctrl-C so many seconds after the file `begun` is there.

    Returns what it held, `every` so many seconds from then on.
    """
    process = start(command, log)
    held, began = [], math.inf
    try:
        while process.poll() is None:
            if time.monotonic() - began > seconds:
                process.send_signal(signal.SIGINT)
                process.wait(120)
                break
            time.sleep(every)
            if begun.exists():
                began = min(began, time.monotonic())
                held += _held(process.pid)
    finally:
        process.kill()
    assert process.returncode == code, log.read_text()[-2000:]
    return held


def _held(pid: int) -> list[Held]:
    """Of this moment; empty where a process ended while it was looked at."""
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
        memory = sum(process.memory_full_info().pss for process in family)
        files = sum(process.num_fds() for process in family)
    except psutil.Error:
        return []
    shared = 0
    for file in Path("/dev/shm").glob("torch_*"):
        with suppress(FileNotFoundError):
            shared += file.stat().st_size
    return [Held(memory, files, len(family), shared)]


def check_flat(held: list[Held], what: str, growth: float) -> None:
    """Of the second third of the time and the last: no more than `growth` times as much memory.

    And no more files, processes and shared memory.
    """
    assert len(held) >= 9, what
    third = len(held) // 3
    early, late = held[third : 2 * third], held[2 * third :]
    print(f"\n{what}, in the second and in the last third of {len(held)} looks:")
    for name in ("memory", "files", "processes", "shared_memory"):
        before, after = (
            statistics.median(getattr(one, name) for one in part) for part in (early, late)
        )
        unit = 1e6 if "memory" in name else 1
        print(f"  {name.replace('_', ' ')}: {before / unit:.1f}, {after / unit:.1f}")
        room = growth * before if name == "memory" else before + (1e6 if unit > 1 else 4)
        assert after <= room, f"{what}: {name}"
