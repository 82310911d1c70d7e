"""Images per second and core that are read, decoded and augmented: here, in torchvision, in timm.

python -m tools.benchmark_input --images data/imagenet/train --output runs/input.json
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms
from torchvision.datasets import ImageFolder

from backbones.cli import run_tool
from backbones.config import parse_config
from backbones.errors import UserError
from backbones.files import atomic_write
from backbones.image_sources import ClassFolders
from backbones.image_transforms import AugmentConfig
from backbones.images import TrainingImages


@dataclass(frozen=True)
class BenchmarkInputConfig:
    """What to measure on which images."""

    images: str | None = None
    """Folder CLASS/* of images; null makes JPEGs of 500 by 375 pixels."""
    count: int = 100
    """Images in a repeat."""
    sizes: list[int] = field(default_factory=lambda: [79, 299])
    """Sides of the training crops, pixels."""
    repeats: int = 7
    """Of each pipeline, in turns; the median counts."""
    output: str | None = None
    """JSON file for the figures."""

    def __post_init__(self) -> None:
        if min(self.count, self.repeats) < 1:
            raise UserError("count and repeats must be at least 1")


def make_jpegs(folder: Path, count: int) -> None:
    """Write JPEGs of 500×375 pixels, quality 90: smooth colours with texture, some 85 KB each."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.full((375, 500, 3), 128, np.float32)
        for cells, deviation in ((4, 40), (16, 20), (48, 18), (96, 18), (192, 18)):
            noise = random.normal(0, deviation, (cells * 3 // 4, cells, 3)).astype(np.float32)
            pixels += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC)
        pixels += random.normal(0, 7, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index:04d}.jpg", quality=90)


def pipelines(root: Path, size: int) -> dict[str, Callable[[int], object]]:
    """Functions from an index to a training example, with the same random changes.

    Ours leaves `uint8`, which the model normalises on its device; so does timm with its prefetcher.
    """
    mean, std, jitter = [0.5] * 3, [0.5] * 3, 0.5
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    pillow = transforms.Compose([*crop, transforms.ColorJitter(jitter, jitter, jitter), *tensor])
    timm_options = {"is_training": True, "color_jitter": jitter, "interpolation": "bilinear"}
    timm = create_transform(size, mean=mean, std=std, **timm_options)
    timm_prefetch = create_transform(size, use_prefetcher=True, **timm_options)
    ours = TrainingImages(ClassFolders(root), size, AugmentConfig(color_jitter=jitter), seed=0)
    return {
        "ours": lambda index: ours[0, index],
        "torchvision": ImageFolder(root, pillow).__getitem__,
        "timm": ImageFolder(root, timm).__getitem__,
        "timm with prefetcher": ImageFolder(root, timm_prefetch).__getitem__,
    }


def measure(root: Path, size: int, count: int, repeats: int) -> dict[str, float]:
    """Images per second of processor time, medians of interleaved repeats, in this thread alone."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    functions = pipelines(root, size)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    indices = range(min(count, len(ClassFolders(root))))
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.process_time()
            for index in indices:
                function(index)
            seconds[name].append(time.process_time() - start)
    return {name: len(indices) / statistics.median(times) for name, times in seconds.items()}


def _main() -> None:
    config = parse_config(BenchmarkInputConfig, description=__doc__ or "")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(config.images or temporary)
        if config.images is None:
            make_jpegs(root / "made", config.count)
        figures = {}
        for size in config.sizes:
            figures[size] = measure(root, size, config.count, config.repeats)
            for name, rate in figures[size].items():
                ratio = figures[size]["ours"] / rate
                print(f"{size:4d} px  {name:21s} {rate:7.0f} images/s   ours is {ratio:.2f} times")
    if config.output is not None:
        with atomic_write(config.output, "w") as file:
            json.dump(figures, file, indent=2)


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


if __name__ == "__main__":
    main()
