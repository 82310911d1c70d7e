"""Speed on machines that are never quiet: medians of interleaved repeats, and what to compare."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from backbones.common.progress import track

PACKAGES = ("torchvision", "timm", "openvino", "nncf", "ultralytics")
"""Whose versions matter to what is measured here, where they are installed."""

MIN_SECONDS = 0.25
"""Least time of a measurement; shorter work is repeated within it."""


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each call, which is made twice before; the device's queue is waited for.

    They take turns, so that what else the machine does in the meantime meets all of them.
    """
    in_a_row = {}
    for name, call in calls.items():
        _seconds(call, 1, device)  # what is made at the first call and kept
        in_a_row[name] = max(1, round(MIN_SECONDS / max(_seconds(call, 1, device), 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    rounds = [(name, call) for _ in range(repeats) for name, call in calls.items()]
    for name, call in track(rounds, len(rounds), "measure", "measurements"):
        taken[name].append(_seconds(call, in_a_row[name], device))
    return {name: statistics.median(times) for name, times in taken.items()}


def matrix_peak(dtype: torch.dtype, device: torch.device, sizes: tuple[int, ...]) -> float:
    """Multiply-adds a second of the fastest square matrix product of some sizes."""
    best = 0.0
    for size in sizes:
        a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        seconds = time_interleaved({"": lambda a=a, b=b: a @ b}, 5, device)[""]  # type: ignore[misc]
        best = max(best, size**3 / seconds)
    return best


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, threads and versions."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    } | {name: version for name in PACKAGES if (version := _version(name)) is not None}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _seconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(count):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count
