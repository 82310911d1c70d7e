"""Data for machines that nothing else reaches, in few bytes: small images in strips, and BCCD.

A 64×64 JPEG spends a third of its bytes on tables that are the same in all of them, and the rest on
more precision than a training run notices: tiny-imagenet's 45,450 would be 88 MB. Strips of them in
WebP are 31 MB, at 27 dB from the originals, and made in twenty seconds. AVIF has 28 dB in the same
space and takes five times as long, JPEG has 25 dB; a third of the images would fit as they are, and
a network learns more from all of them. Validation images stay as they are.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder
from backbones.common.images import Pixels
from backbones.data.sources import ImageSource, open_split

TILES = 200
"""Of a strip; WebP's images are at most 16,383 pixels high."""

QUALITY, QUALITY_UNPACKED = 26, 92
"""WebP's of the strips: some 690 bytes for each image of 64 by 64 pixels; of the JPEGs made of
them again."""

CONTENTS, BCCD = "contents.json", "bccd.tar.gz"


def pack(images: Path, bccd: Path, folder: Path, val_images: int) -> None:
    """Write both data sets into a folder.

    Args:
        images: folder of shards whose training images are of one size.
        bccd: folder in VOC's layout.
        folder: where to write; made where it is missing.
        val_images: how many of the validation images, the first ones.

    Raises:
        UserError: no such data, or training images of several sizes.
    """
    if not (bccd / "Annotations").is_dir():
        raise UserError(f"{bccd}: no folder Annotations in it: expected BCCD in VOC's layout")
    train, val = open_split(images, "train"), open_split(images, "val")
    make_folder(folder)
    with tarfile.open(folder / BCCD, "w:gz") as tar:
        for name in ("Annotations", "ImageSets", "JPEGImages"):
            tar.add(bccd / name, name)
    parts = [range(start, min(start + TILES, len(train))) for start in range(0, len(train), TILES)]
    with ThreadPoolExecutor() as pool:
        sizes = set(pool.map(lambda part: _write_strip(train, part, folder), parts))
    if len(sizes) > 1 or () in sizes:
        raise UserError(f"{images}: training images must be of one size to be packed")
    contents = {
        "train": [train.labels[part.start : part.stop] for part in parts],
        "classes": list(train.class_names),
    }
    with atomic_write(folder / CONTENTS, "w") as text:
        json.dump(contents, text)
    chosen = (val.read(index)[:2] for index in range(min(val_images, len(val))))
    _write_shard(folder / "val-0000.tar.gz", chosen, "w:gz")


def unpack(folder: Path, work: Path) -> tuple[Path, Path]:
    """Make ordinary data sets of what `pack` wrote.

    Returns:
        Folders in `work`: of shards, and in VOC's layout.

    Raises:
        UserError: the folder holds no such thing.
    """
    if not (folder / CONTENTS).exists():
        raise UserError(f"{folder}: no {CONTENTS}: expected a folder that tools.gpu_pack wrote")
    contents = json.loads((folder / CONTENTS).read_text())
    images, bccd = make_folder(work / "images"), work / "bccd"
    (images / "classes.json").write_text(json.dumps(contents["classes"]))
    with tarfile.open(folder / BCCD) as tar:
        tar.extractall(bccd, filter="data")
    with tarfile.open(folder / "val-0000.tar.gz") as tar:
        tar.extractall(work / "val", filter="data")
    val = sorted((work / "val").glob("*.jpg"))
    pairs = ((file.read_bytes(), int(file.with_suffix(".cls").read_text())) for file in val)
    _write_shard(images / "val-0000.tar", pairs, "w")

    def unpack_strip(number: int) -> None:
        labels = contents["train"][number]
        with Image.open(folder / f"train-{number:04d}.webp") as image:
            tiles = np.split(np.asarray(image.convert("RGB")), len(labels))
        jpegs = (_encode(tile) for tile in tiles)
        _write_shard(images / f"train-{number:04d}.tar", zip(jpegs, labels, strict=True), "w")

    with ThreadPoolExecutor() as pool:
        list(pool.map(unpack_strip, range(len(contents["train"]))))
    return images, bccd


def _write_strip(source: ImageSource, part: range, folder: Path) -> tuple[int, ...]:
    """Returns the shape of a tile; empty where they differ."""
    tiles = [_decode(source.read(index)[0]) for index in part]
    if len({tile.shape for tile in tiles}) > 1:
        return ()
    encoded = io.BytesIO()
    Image.fromarray(np.concatenate(tiles)).save(encoded, "WEBP", quality=QUALITY, method=4)
    with atomic_write(folder / f"train-{part.start // TILES:04d}.webp") as file:
        file.write(encoded.getvalue())
    return tiles[0].shape


def _write_shard(path: Path, examples: Iterable[tuple[bytes, int]], mode: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number, (data, label) in enumerate(examples):
            for suffix, content in (("jpg", data), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{path.name.partition('.')[0]}_{number:05d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _decode(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _encode(tile: Pixels) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(tile).save(encoded, "JPEG", quality=QUALITY_UNPACKED)
    return encoded.getvalue()
