"""Something to learn from and to look at, and a detector of seconds."""

import os
from pathlib import Path

import torch
import yaml
from helpers.tiny_detector import TINY
from soak.watch import tool

from backbones.common.images import write_image

SIDE = 64


def write_dataset(folder: Path, count: int) -> Path:
    """Bright squares on noise, in YOLO's layout, as `train` and `val`."""
    random = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(count):
            image = torch.randint(0, 120, (3, SIDE, SIDE), generator=random, dtype=torch.uint8)
            x, y = torch.randint(0, SIDE - 24, (2,), generator=random).tolist()
            image[:, y : y + 24, x : x + 24] += 120
            write_image(folder / "images" / split / f"{number}.png", image)
            row = f"0 {(x + 12) / SIDE} {(y + 12) / SIDE} {24 / SIDE} {24 / SIDE}\n"
            (folder / "labels" / split / f"{number}.txt").write_text(row)
    document = {"train": "images/train", "val": "images/val", "names": ["square"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(document))
    return folder


def training(data: Path, run: Path, **keys: object) -> list[str]:
    """The command that trains on it. Of one process, so that it ends bit for bit the same."""
    config = run.with_suffix(".yaml")
    where = {"format": "yolo", "root": str(data), "test": None}
    content = TINY | {"data": where, "processes": 1, "workers": 1} | keys
    config.write_text(yaml.safe_dump(content))
    return tool("train_detector", "--config", config, "--run", run)


def write_pictures(folder: Path, count: int) -> int:
    """So many pictures, every hundredth cut off; the number of those."""
    folder.mkdir()
    noise = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    good, broken = folder / "0.jpg", folder / "1.jpg"
    write_image(good, noise)
    broken.write_bytes(good.read_bytes()[:2000])
    for number in range(2, count):
        os.link(broken if number % 100 == 1 else good, folder / f"{number}.jpg")
    return len(range(1, count, 100))
