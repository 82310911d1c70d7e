"""The parts of `tools.gpu_check`, in their order."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch

from backbones.benchmarks import gpu_correctness, gpu_speed
from backbones.benchmarks.findings import Finding, NotHereError, Report
from backbones.benchmarks.gpu_settings import GpuSettings
from detect.benchmarks import gpu_checks, gpu_training

Check = Callable[[], Iterable[Finding]]

COMPILING = 120.0
"""Seconds that networks may take to be compiled, beyond the time of the checks of correctness."""

LEAST = 45.0
"""Seconds before the deadline from which on nothing is begun but training."""


def parts_of(
    settings: GpuSettings, report: Report, wanted: Sequence[str]
) -> Iterator[tuple[str, Check]]:
    """Names and functions; while some are run, networks are compiled for those that come.

    Args:
        settings: see there.
        report: what was found so far.
        wanted: of `correctness`, `speed` and `training`.
    """
    ahead = gpu_speed.CompiledAhead(settings)
    if "speed" in wanted and settings.compile:
        yield "compiling begins", ahead.start
    parts: list[tuple[str, Check]] = []
    if "correctness" in wanted:
        parts += _correctness(settings)
    if "speed" in wanted:
        parts += _speed(settings, ahead)
    for name, check in parts:
        yield name, partial(_in_time, settings, check)
    if "training" in wanted:
        yield "training", partial(gpu_training.train, settings, report)


def _in_time(settings: GpuSettings, check: Check) -> Iterator[Finding]:
    if time.monotonic() > settings.deadline - LEAST:
        raise NotHereError("no time was left")
    try:
        yield from check()
    finally:
        gc.collect()
        if settings.is_gpu:
            torch.cuda.empty_cache()


def _correctness(settings: GpuSettings) -> list[tuple[str, Check]]:
    checks = {
        "networks beside torchvision's": gpu_correctness.check_parity,
        "a step beside the CPU's": gpu_correctness.check_step,
        "deployed networks": gpu_correctness.check_deployed,
        "waiting for the device": gpu_correctness.check_waiting,
        "resuming in the middle of an epoch": gpu_correctness.check_resume,
        "NCCL": gpu_correctness.check_nccl,
        "a detector": gpu_checks.check_detector,
    }
    return [(name, partial(check, settings)) for name, check in checks.items()]


def _speed(settings: GpuSettings, ahead: gpu_speed.CompiledAhead) -> list[tuple[str, Check]]:
    parts: list[tuple[str, Check]] = []
    if settings.compile:
        parts.append(("compiled beforehand", partial(ahead.wait, COMPILING)))
    parts.append(("matrix peak", partial(gpu_speed.measure_peak, settings)))
    form = f"bf16, batch {settings.batch_size}"
    for variant in settings.variants:
        parts += [
            (
                f"inference, {variant}, {form}",
                partial(gpu_speed.measure_inference, settings, variant, ahead),
            ),
            (
                f"training, {variant}, {form}",
                partial(gpu_speed.measure_training, settings, variant),
            ),
        ]
    parts.append(("input pipeline against step", partial(gpu_speed.measure_input, settings)))
    for width in dict.fromkeys((settings.width, gpu_training.NARROW)):
        for crops in (100, 300) if settings.is_gpu else (10,):
            check = partial(gpu_checks.measure_detector, settings, width, crops)
            parts.append((f"detector at width {width:g}, {crops} crops", check))
    parts.append(("detector's training step", partial(gpu_checks.measure_detector_step, settings)))
    if settings.compile:
        variant = settings.variants[0]
        check = partial(gpu_speed.measure_compiled_training, settings, variant, ahead)
        parts.append((f"training, {variant}, {form}, compiled", check))
    return parts
