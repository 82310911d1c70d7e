"""How many threads a process computes in."""

import math
from pathlib import Path

import torch

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def limit_threads_to_quota() -> None:
    """Let torch use no more threads than a container has cores' worth of processor time.

    It counts the cores of the machine, or OMP_NUM_THREADS. Under `docker run --cpus 2` on 64 cores
    its threads would wait for one another most of the time.
    """
    cores = _quota()
    if cores is not None and cores < torch.get_num_threads():
        torch.set_num_threads(cores)


def _quota() -> int | None:
    """Cores that this process's control group and those around it may keep busy; None for all."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return None
    # Version 2. A container sees its own group as the root: `0::/`.
    names = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    quotas = []
    for group in [group for name in names for group in (_ROOT / name, *(_ROOT / name).parents)]:
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except OSError:
            continue
        if quota != "max":
            quotas.append(max(1, math.ceil(int(quota) / int(period))))
    return min(quotas, default=None)
