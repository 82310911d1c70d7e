"""What `tools.gpu_check` needs on a machine that reaches nothing else, in one folder under 48 MB.

python -m tools.gpu_pack --images data/tiny-imagenet-202 --bccd data/bccd/BCCD
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from backbones.benchmarks.gpu.carried import pack
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.files import make_folder

WHEELS = (
    *("albumentations==2.0.8", "albucore==0.0.24", "simsimd", "stringzilla<3.13"),
    *("pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types", "typing-inspection"),
    *("typing-extensions", "jsonargparse", "docstring-parser", "pycocotools"),
)
"""What a machine with PyTorch, timm and scikit-image lacks of what is imported there; the last
versions of stringzilla are ten times as large, for nothing that is used here."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

PYTHON = "3.12"
"""Version of Python on the machine with the GPU, which runs Linux on x86-64."""

MOST_BYTES = 48_000_000

VAL_IMAGES = 2000
"""Validation images, which are carried as they are."""


@dataclass(frozen=True)
class GpuPackConfig:
    """What to write, and from what."""

    images: str = "data/tiny-imagenet-202"
    """Folder of small images, to be written smaller."""
    bccd: str = "data/bccd/BCCD"
    """Folder of BCCD in VOC's layout, which is written too."""
    output: str = "data/gpu"
    """Folder to write for the machine with the GPU, with its packages in `wheels`."""


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(GpuPackConfig, description="Carried data for tools.gpu_check.")
    folder = make_folder(config.output)
    download_wheels(folder / "wheels")
    pack(Path(config.images), Path(config.bccd), folder, VAL_IMAGES)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise UserError(f"{folder} is larger than {MOST_BYTES / 1e6:.0f} MB")


def download_wheels(folder: Path) -> None:
    """Wheels of `WHEELS`, without what they need in turn.

    Raises:
        UserError: pip cannot get one of them.
    """
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    command += [*platforms, "--dest", str(folder), *WHEELS]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        last = found.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"pip cannot download wheels for Python {PYTHON}: {last[0]}")


if __name__ == "__main__":
    main()
