"""Speed beside torchvision's and timm's, in one run on this machine.

python -m tools.benchmark --output runs/benchmark
python -m tools.benchmark --parts '[training]' --networks '[inception_v3_79]' --width 0.25
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.benchmarks.tables import (
    Part,
    Row,
    format_rows,
    measure_inference,
    measure_input,
    measure_memory,
    measure_training,
)
from backbones.benchmarks.timing import describe_machine
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.device import require_compiler, resolve_device
from backbones.common.errors import UserError
from backbones.common.files import make_folder, write_json
from backbones.common.ranges import check_ranges
from backbones.networks.specs import SPECS


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    parts: tuple[Part, ...] = ("inference", "training", "memory", "input")
    """What is measured: `inference` and `training` are forward passes and training steps, `memory`
    is the peak of a process that makes forward passes, `input` is reading and augmenting training
    images."""
    networks: tuple[str, ...] = ("inception_v3", "inception_v3_79")
    """Variants that are measured; the peers are the same networks, built from torchvision's and
    timm's."""
    width: float = 1.0
    """Width multiplier of our networks; peers are measured beside 1 alone."""
    batch_size: int | None = None
    """Images in a batch; null is 32 for networks with inputs below 100 pixels and 8 above."""
    repeats: int = 7
    """Measurements of each network, in turns; the median counts."""
    compile: bool = False
    """Measure torchvision's network and ours also as torch.compile compiles them, which takes
    minutes before they run."""
    images: str | None = None
    """Folder CLASS/* of images for the part `input`; null makes JPEGs of 500 by 375 pixels."""
    output: str = "runs/benchmark"
    """Folder for benchmark.json."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        for name in self.networks:
            if name not in SPECS:
                raise UserError(f"networks: unknown backbone {name!r}: known: {', '.join(SPECS)}")
        check_ranges(self, "", {"[1, inf)": "repeats batch_size"})
        if self.compile and "inference" not in self.parts:
            raise UserError("compile is for the part inference: remove it, or name the part")
        if self.images is not None and "input" not in self.parts:
            raise UserError("images are for the part input: remove them, or name the part")
        if self.images is not None and not os.path.isdir(self.images):
            raise UserError(f"{self.images}: no such folder: images must name one of CLASS/*")
        if not self.parts or not self.networks:
            raise UserError("parts and networks must not be empty")


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(BenchmarkConfig, description="Speed beside torchvision's and timm's.")
    device = resolve_device(config.device)
    if config.compile and device.type == "cpu":
        require_compiler("compile")
    folder = make_folder(config.output)
    machine = describe_machine(device)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    rows: list[Row] = []
    for part in dict.fromkeys(config.parts):
        for found in _measure(part, config, device):
            print(f"\n{format_rows(found)}")
            rows += found
            report: dict[str, Any] = {"machine": machine, "rows": [vars(row) for row in rows]}
            write_json(folder / "benchmark.json", report, indent=2)
    print(f"\nnumbers: {folder}/benchmark.json")


def _measure(part: Part, config: BenchmarkConfig, device: torch.device) -> Any:
    """Rows of each network in turn."""
    if part == "input":
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(config.images) if config.images is not None else None
            for name in config.networks:
                size = SPECS[name].input_size
                yield measure_input(size, root, Path(temporary) / name, config.repeats)
        return
    for name in config.networks:
        batch_size = config.batch_size or (32 if SPECS[name].input_size < 100 else 8)
        arguments = (name, config.width, batch_size, device)
        if part == "inference":
            yield measure_inference(*arguments, config.repeats, compiled=config.compile)
        elif part == "training":
            yield measure_training(*arguments, config.repeats)
        else:
            yield measure_memory(*arguments)


if __name__ == "__main__":
    main()
