"""How large the checks of `tools.gpu_check` are: full on a GPU, tiny on a CPU."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class GpuSettings:
    """What the parts of a check have in common.

    Attributes:
        device: what is checked, beside the CPU.
        images: folder of training images, as `ImagesConfig.root`.
        bccd: folder in VOC's layout.
        work: folder for what the parts write and need no longer than the run.
        out: folder for what should be kept.
        variants: networks.
        width: multiplier, 1 beside torchvision.
        batch_size: images.
        repeats: measurements, of which the median counts.
        compile: also compiled networks.
        workers: processes that read images.
        deadline: `time.monotonic()` at which training should be over.
    """

    device: torch.device
    images: Path
    bccd: Path
    work: Path
    out: Path
    variants: tuple[str, ...]
    width: float
    batch_size: int
    repeats: int
    compile: bool
    workers: int
    deadline: float

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to check."""
        return self.device.type == "cuda"

    @classmethod
    def for_device(
        cls,
        device: torch.device,
        images: Path,
        bccd: Path,
        work: Path,
        out: Path,
        deadline: float,
        *,
        compiles: bool,
    ) -> "GpuSettings":
        """Full size on a GPU; on a CPU what takes seconds, to see that it runs."""
        is_gpu = device.type == "cuda"
        return cls(
            *(device, images, bccd, work, out),
            variants=("inception_v3_79", "inception_v3") if is_gpu else ("inception_v3_79_naive",),
            width=1.0 if is_gpu else 0.25,
            batch_size=256 if is_gpu else 2,
            repeats=5 if is_gpu else 1,
            compile=compiles and is_gpu,
            workers=max(1, (os.cpu_count() or 2) - 2) if is_gpu else 0,
            deadline=deadline,
        )
