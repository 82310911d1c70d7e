"""The most memory that a network needs, measured in a process of its own."""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from backbones.benchmarks.peers import inference_forms
from backbones.common.errors import UserError
from backbones.common.memory import keep_freed_memory

PASSES = 3


def peak_memory(
    variant: str, width: float, batch_size: int, device: torch.device, index: int
) -> int:
    """Bytes that the process of a form had at most, or on CUDA that its tensors had.

    It is number `index` of what `inference_forms` gives for the other arguments. The process has
    built the network and made some forward passes. What importing the packages takes is counted;
    OpenVINO is imported for its own alone.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, variant, width, batch_size, device, index).result()
        except BrokenProcessPool as error:
            forms = inference_forms(variant, width, batch_size, device, compiled=False)
            raise UserError(
                f"{forms[index].name} {forms[index].precision}: its process died, perhaps "
                "for lack of memory: take a smaller batch_size"
            ) from error


def _measure(variant: str, width: float, batch_size: int, device: torch.device, index: int) -> int:
    keep_freed_memory()
    forms = inference_forms(variant, width, batch_size, device, compiled=False)
    call = forms[index].make()
    for _ in range(PASSES):
        call()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _peak_of_process()


def _peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with the peak of the process that started this one.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
