"""What `tools.gpu_check` does in which process, and when.

An error of a GPU spoils the process that it happens in, so there are several. Checks that time
nothing run at the same time, as do the compilers; what is timed has the machine for itself.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from backbones.benchmarks.gpu import correctness
from backbones.benchmarks.gpu.findings import Finding, Report
from backbones.benchmarks.gpu.processes import OwnProcess, Turn
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.benchmarks.gpu.speed import Timed, measure_input
from detect.benchmarks.gpu import detector
from detect.benchmarks.gpu.training import train

LEAST = 10.0
"""Seconds before the deadline from which on nothing more is begun."""


class Part(NamedTuple):
    """One part of the table."""

    process: str
    name: str
    check: Turn


class Stage(NamedTuple):
    """Parts that run at the same time, but those of one process one after the other."""

    seconds: float
    """After which what is unfinished is given up."""
    parts: list[Part]


def run_groups(settings: GpuSettings, report: Report, wanted: Sequence[str]) -> None:
    """Run what is wanted of `correctness`, `speed` and `training`, in this order.

    Whatever fails, dies or hangs, the parts of other processes are run.
    """
    stages = stages_of(settings, wanted)
    turns: dict[str, list[Turn]] = defaultdict(list)
    for stage in stages:
        for part in stage.parts:
            turns[part.process].append(partial(_timed, part.check))
    with ExitStack() as running:
        processes = {name: OwnProcess(*checks) for name, checks in turns.items()}
        for process in processes.values():
            running.callback(process.close)
        for stage in stages:
            until = min(time.monotonic() + stage.seconds, settings.deadline)
            if time.monotonic() > settings.deadline - LEAST:
                for part in stage.parts:
                    report.run(part.name, [Finding("no time was left", "not done")])
                continue
            for part in stage.parts:
                processes[part.process].begin()
            for part in stage.parts:
                left = max(until - time.monotonic(), 0)
                report.run(part.name, processes[part.process].values(left))
    if "training" in wanted:
        report.run("training", train(settings))


def stages_of(settings: GpuSettings, wanted: Sequence[str]) -> list[Stage]:
    """What is done at the same time, one stage after the other."""
    stages = []
    if "correctness" in wanted:
        checks = {
            "networks beside torchvision's": correctness.check_parity,
            "a step beside the CPU's": correctness.check_step,
            "deployed networks": correctness.check_deployed,
            "waiting for the device": correctness.check_waiting,
            "NCCL": correctness.check_nccl,
        }
        parts = [Part("checks", name, partial(check, settings)) for name, check in checks.items()]
        resume = partial(correctness.check_resume, settings)
        parts.append(Part("resuming", "resuming in the middle of an epoch", resume))
        parts.append(Part("detector", "a detector", partial(detector.check_detector, settings)))
        stages.append(Stage(110, parts))
    if "speed" in wanted:
        ready, timed = [], []
        for kind in ("inference", "training"):
            for variant in settings.variants:
                name = f"{kind}, {variant}, bf16, batch {settings.batch_size}"
                forms = Timed(settings, variant, kind)
                ready.append(Part(name, f"{name}: made ready", forms.prepare))
                timed.append(Part(name, name, forms.measure))
        for width in dict.fromkeys((settings.width, correctness.NARROW)):
            for crops in (100, 300) if settings.is_gpu else (10,):
                name = f"detector at width {width:g}, {crops} crops"
                check = partial(detector.measure_detector, settings, width, crops)
                timed.append(Part("detector", name, check))
        step = partial(detector.measure_detector_step, settings)
        timed.append(Part("detector", "detector's training step", step))
        reading = partial(measure_input, settings)
        timed.append(Part("input", "input pipeline against step", reading))
        stages.append(Stage(90, ready))
        stages += [Stage(40, [part]) for part in timed]
    return stages


def _timed(check: Turn) -> Iterator[Finding]:
    began = time.monotonic()
    yield from check()
    yield Finding("took", time.monotonic() - began, "s")
