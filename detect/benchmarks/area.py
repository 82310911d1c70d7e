"""Seconds and memory that inference takes against the area of one image."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.benchmarks.timing import describe_machine
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder, write_json
from backbones.common.images import read_image
from backbones.common.packages import require
from backbones.common.plots import new_plot, save_plot
from backbones.common.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class AreaConfig:
    """One detector on images of several sizes."""

    weights: str
    """Detector checkpoint (.safetensors), or a run folder."""
    image: str
    """Image that the larger ones are made of, side by side."""
    megapixels: tuple[float, ...] = (25, 50, 100, 200, 400)
    """Areas in millions of pixels."""
    suffix: str = ".tif"
    """Format of the images: `.tif` in tiles, or `.jpg`."""
    scale: float = 1.0
    """Pixels that the proposer sees for a pixel of the image."""
    output: str = "runs/area"
    """Folder for area.json, area.md, area.png and what inference writes."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"(0, inf)": "megapixels"})
        if self.suffix not in (".tif", ".jpg"):
            raise UserError(f"suffix must be .tif or .jpg, got {self.suffix}")


def measure_area(config: AreaConfig) -> str:
    """Run `tools.infer` on an image of each size, in a process of its own; the table as Markdown.

    Raises:
        UserError: an input cannot be read, or inference fails.
        MissingPackageError: without rasterio.
    """
    require("large", "rasterio")
    folder = make_folder(config.output)
    part = read_image(config.image).permute(1, 2, 0).numpy()
    rows = []
    for megapixels in config.megapixels:
        path = folder / f"{megapixels:g}{config.suffix}"
        side = write_mosaic(path, part, megapixels)
        rows.append({"megapixels": side**2 / 1e6} | _infer(config, path, folder / path.stem))
        path.unlink()
    machine = describe_machine(torch.device("cpu"))
    write_json(folder / "area.json", {"machine": machine, "rows": rows}, indent=2)
    _draw(rows, folder / "area.png")
    table = area_table(rows)
    with atomic_write(folder / "area.md", "w") as file:
        file.write(table)
    return table


def write_mosaic(path: Path, part: np.ndarray, megapixels: float) -> int:
    """Write a square image of a part `uint8 [H, W, 3]` side by side, strip by strip; its side."""
    import rasterio
    import rasterio.shutil

    height, width, _ = part.shape
    side = round((megapixels * 1e6) ** 0.5)
    strip = np.tile(part.transpose(2, 0, 1), (1, 1, -(-side // width)))[:, :, :side]
    size = {"width": side, "height": side, "count": 3, "dtype": "uint8"}
    tiled = {"tiled": True, "compress": "jpeg", "photometric": "ycbcr", "BIGTIFF": "IF_SAFER"}
    target = path.with_suffix(".tif")
    with rasterio.open(target, "w", driver="GTiff", **size, **tiled) as file:
        for top in range(0, side, height):
            rows = min(height, side - top)
            file.write(strip[:, :rows], window=((top, top + rows), (0, side)))
    if path != target:
        rasterio.shutil.copy(target, path, driver="JPEG")
        target.unlink()
    return side


def _infer(config: AreaConfig, path: Path, output: Path) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "tools.infer", "--weights", config.weights),
        *("--inputs", str(path), "--output", str(output)),
        *("--model.learned.scale", str(config.scale), "--overwrite"),
    ]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"inference of {path} failed: {said.strip().splitlines()[-1]}")
    found = json.loads((output / "results.json").read_text())
    return {
        "seconds": time.monotonic() - begin,
        "megabytes": usage.ru_maxrss * 1024 / 1e6,
        "objects": len(found),
    }


def area_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| megapixels | seconds | seconds a megapixel | peak memory | objects |"]
    lines.append("| ---: |" + " ---: |" * 4)
    for row in rows:
        each = row["seconds"] / row["megapixels"]
        lines.append(
            f"| {row['megapixels']:.0f} | {row['seconds']:.1f} | {each:.2f} | "
            f"{row['megabytes']:,.0f} MB | {row['objects']:,} |"
        )
    return "\n".join(lines) + "\n"


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    plot = new_plot(8, 3.4)
    area = [row["megapixels"] for row in rows]
    for panel, key, label in zip(
        *(plot.subplots(1, 2), ("seconds", "megabytes"), ("seconds", "peak memory in MB")),
        strict=True,
    ):
        panel.plot(area, [row[key] for row in rows], marker="o")
        panel.set(xlabel="megapixels", ylabel=label, xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    save_plot(plot, path)
