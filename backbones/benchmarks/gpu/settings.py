"""How large the checks of `tools.gpu_check` are: full on a GPU, tiny on a CPU."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class GpuSettings:
    """What the parts of a check have in common."""

    device: torch.device
    images: Path
    """As `ImagesConfig.root`."""
    bccd: Path
    """In VOC's layout."""
    work: Path
    """For what is needed no longer than the run."""
    out: Path
    """For what should be kept."""
    deadline: float
    """`time.monotonic()` at which all should be over."""

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to check."""
        return self.device.type == "cuda"

    @property
    def variants(self) -> tuple[str, ...]:
        """Networks; the first is the one that is trained."""
        return ("inception_v3_79", "inception_v3") if self.is_gpu else ("inception_v3_79_naive",)

    @property
    def width(self) -> float:
        """Multiplier, 1 beside torchvision."""
        return 1.0 if self.is_gpu else 0.25

    @property
    def batch_size(self) -> int:
        """Images in a pass or step."""
        return 256 if self.is_gpu else 2

    @property
    def repeats(self) -> int:
        """Measurements, of which the median counts."""
        return 5 if self.is_gpu else 1

    @property
    def workers(self) -> int:
        """Processes that read images."""
        return max(1, (os.cpu_count() or 2) - 2) if self.is_gpu else 0
