"""Selective search (Uijlings et al. 2013), the original R-CNN's proposals, by OpenCV's contrib."""

import contextlib
import ctypes
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from backbones.common.errors import MissingPackageError
from backbones.common.files import atomic_write
from backbones.common.ranges import check_ranges
from detect.proposals.base import Proposals, Proposer

logger = logging.getLogger(__name__)

_DRAWING = Lock()
"""All threads of a process draw from one series of numbers: one searches at a time."""


@dataclass(frozen=True)
class SelectiveSearchConfig:
    """Regions by merging alike neighbours; seconds an image, so keep a cache."""

    mode: Literal["fast", "quality"] = "fast"
    """How much selective search looks for: `fast` is R-CNN's, two colour spaces and two scales,
    some 2,000 regions of a photograph; `quality` has more of both, several times the regions and
    the time."""
    top_n: int = 2000
    """Most regions of an image, each of which costs one crop in use."""
    cache: str | None = None
    """Folder that keeps the regions of every image seen, so that the next epoch or run does not
    search again; null keeps nothing."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.selective_search.", {"[1, inf)": "top_n"})


class SelectiveSearchProposer(Proposer):
    """Selective search on every image, best rank first, with the rank as score: 1 down to above 0.

    The method shuffles its ranks on purpose, by C's random numbers. They are seeded before every
    search on Linux, where the same image always has the same list; elsewhere regions are ordered by
    size, largest first.

    Raises:
        MissingPackageError: this OpenCV has no contrib modules.
    """

    def __init__(self, config: SelectiveSearchConfig) -> None:
        super().__init__()
        self.config = config
        check_installed()

    def forward(self, images: Sequence[Tensor]) -> list[Proposals]:
        """See `Proposer`; raises `UserError` where the cache cannot be written to."""
        return [self._propose(image) for image in images]

    def _propose(self, image: Tensor) -> Proposals:
        # OpenCV's colours are in the order blue, green, red.
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()[..., ::-1])
        regions = self._regions(pixels)
        boxes = torch.from_numpy(regions[: self.config.top_n]).to(torch.float32)
        ranks = torch.arange(len(boxes))
        return Proposals(boxes, 1 - ranks / len(regions))

    def _regions(self, pixels: np.ndarray) -> np.ndarray:
        """All regions of an image `uint8 [H, W, 3]` as `int32 [N, 4]` xyxy, N > 0."""
        if self.config.cache is None:
            return search(pixels, self.config.mode)
        path = Path(self.config.cache) / cache_name(pixels, self.config.mode)
        if os.path.exists(path):
            try:
                return read_regions(path, pixels.shape[:2])
            except (OSError, ValueError, EOFError) as error:
                logger.warning("%s: damaged, searching again: %s", path, error)
        regions = search(pixels, self.config.mode)
        with atomic_write(path) as file:
            np.save(file, regions, allow_pickle=False)
        return regions


def check_installed() -> None:
    """Raise `MissingPackageError`, with the line that mends it, where OpenCV lacks the search."""
    # Without contrib there may still be an empty cv2.ximgproc, of type stubs.
    if hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        return
    package = "opencv-contrib-python-headless"
    # OpenCV may have come as another distribution, whose version need not exist of this one.
    with contextlib.suppress(PackageNotFoundError):
        package += f"=={version('opencv-python-headless')}"
    raise MissingPackageError(
        "selective search needs OpenCV's contrib modules, installed after every other OpenCV "
        f"package: pip install --no-deps --force-reinstall {package}"
    )


def search(pixels: np.ndarray, mode: Literal["fast", "quality"]) -> np.ndarray:
    """Regions of an image `uint8 [H, W, 3]`, blue first: `int32 [N, 4]` xyxy in pixels, N > 0, in
    order of rank (see `SelectiveSearchProposer`)."""
    searcher: Any = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(pixels)
    if mode == "fast":
        searcher.switchToSelectiveSearchFast()
    else:
        searcher.switchToSelectiveSearchQuality()
    if _can_seed():
        with _DRAWING:
            # cv2.setRNGSeed has no say here: the ranks are drawn by rand().
            ctypes.CDLL(None).srand(0)
            xywh = searcher.process()
    else:
        xywh = searcher.process()
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    if not _can_seed():
        boxes = boxes[np.lexsort((*boxes.T, -xywh[:, 2] * xywh[:, 3]))]
    return boxes


def _can_seed() -> bool:
    return sys.platform == "linux"


def cache_name(pixels: np.ndarray, mode: str) -> str:
    """Name of the file that keeps an image's regions: of all that they depend on."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((pixels.shape, mode, cv2.__version__, _can_seed())).encode())
    digest.update(pixels.tobytes())
    return f"{digest.hexdigest()}.npy"


def read_regions(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Regions from a file of the cache.

    Raises:
        OSError, EOFError, ValueError: it cannot be read, or is not `int32 [N, 4]` of boxes inside
            an image of `size` (height, width).
    """
    with path.open("rb") as file:
        boxes = np.load(file, allow_pickle=False)
    if boxes.dtype != np.int32 or boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise ValueError(f"expected int32 [N, 4], got {boxes.dtype} {list(boxes.shape)}")
    height, width = size
    inside = (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
    if not (inside and (boxes[:, :2] < boxes[:, 2:]).all()):
        raise ValueError(f"expected boxes inside an image of {width}x{height} pixels")
    return boxes
