"""What this project does on a GPU: correctness, speed beside torchvision, and training.

python -m tools.gpu_check --carried data/gpu
python -m tools.gpu_check --images data/tiny-imagenet-202 --bccd data/bccd/BCCD --minutes 30
"""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backbones.benchmarks.gpu.carried import unpack
from backbones.benchmarks.gpu.findings import Report
from backbones.benchmarks.gpu.processes import GRACE
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.benchmarks.timing import describe_machine
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.device import resolve_device
from backbones.common.ranges import check_ranges
from detect.benchmarks.gpu.groups import run_groups

Part = Literal["correctness", "speed", "training"]


@dataclass(frozen=True)
class GpuCheckConfig:
    """What to check, and with what."""

    carried: str | None = None
    """Folder that tools.gpu_pack wrote, with images and detection data; instead of `images` and
    `bccd`."""
    images: str = "data/tiny-imagenet-202"
    """Folder of training images for backbones, as data.root of tools.train_backbone."""
    bccd: str = "data/bccd/BCCD"
    """Folder of BCCD in VOC's layout, for detectors."""
    parts: tuple[Part, ...] = ("correctness", "speed", "training")
    """Parts of the check, done in this order."""
    minutes: float = 8.0
    """Minutes that all parts may take together; training has what is left."""
    output: str = "runs/gpu_check"
    """Folder for gpu_check.json, gpu_check.txt, log.txt and weights."""
    device: str = "auto"
    """Device to compute on: `cpu` (everything is tiny), `cuda`, `cuda:1`; `auto` takes a GPU where
    there is one."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"(0, inf)": "minutes"})


@command
def main() -> None:
    """Run from the command line."""
    began = time.monotonic()
    config = parse_config(GpuCheckConfig, description="What this project does on a GPU.")
    device = resolve_device(config.device)
    out = Path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    logging.getLogger().addHandler(logging.FileHandler(out / "log.txt", "w", encoding="utf-8"))
    report = Report(out, describe_machine(device))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        images, bccd = Path(config.images), Path(config.bccd)
        if config.carried is not None:
            images, bccd = unpack(Path(config.carried), Path(work))
        # What is asked to end then has a little time to do so.
        deadline = began + 60 * config.minutes - GRACE
        settings = GpuSettings(device, images, bccd, Path(work), out, deadline)
        run_groups(settings, report, config.parts)
    print(report.table())
    print(f"\n{out}/gpu_check.json, {out}/gpu_check.txt, {out}/log.txt")


if __name__ == "__main__":
    main()
