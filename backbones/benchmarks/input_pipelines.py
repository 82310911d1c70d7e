"""Input pipelines to be timed side by side: here, in torchvision and in timm."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import io, transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from backbones.data.datasets import TrainingImages
from backbones.data.sources import ClassFolders
from backbones.data.transforms import AugmentConfig


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

    Ours leaves `uint8`, which the model normalises on its device; so do timm with its prefetcher
    and torchvision's v2 on tensors.
    """
    mean, std, jitter = [0.5] * 3, [0.5] * 3, 0.5
    crop = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    pillow = transforms.Compose([*crop, transforms.ColorJitter(jitter, jitter, jitter), *tensor])
    tensors = v2.Compose(
        [
            *(v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()),
            v2.ColorJitter(jitter, jitter, jitter),
        ]
    )
    timm_options = {"is_training": True, "color_jitter": jitter, "interpolation": "bilinear"}
    timm = create_transform(size, mean=mean, std=std, **timm_options)
    timm_prefetch = create_transform(size, use_prefetcher=True, **timm_options)
    ours = TrainingImages(ClassFolders(root), size, AugmentConfig(color_jitter=jitter), seed=0)
    return {
        "torchvision": ImageFolder(root, pillow).__getitem__,
        "torchvision v2": ImageFolder(
            root,
            tensors,
            loader=lambda path: io.decode_jpeg(io.read_file(path), io.ImageReadMode.RGB),
        ).__getitem__,
        "timm": ImageFolder(root, timm).__getitem__,
        "timm with prefetcher": ImageFolder(root, timm_prefetch).__getitem__,
        "ours": lambda index: ours[0, index],
    }


def input_rates(root: Path, size: int, count: int, repeats: int) -> dict[str, float]:
    """Images per second of processor time, medians of interleaved repeats, in this thread alone."""
    functions = pipelines(root, size)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    indices = range(min(count, len(ClassFolders(root))))
    with _one_thread():
        for _ in range(repeats):
            for name, function in functions.items():
                start = time.process_time()
                for index in indices:
                    function(index)
                seconds[name].append(time.process_time() - start)
    return {name: len(indices) / statistics.median(times) for name, times in seconds.items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
