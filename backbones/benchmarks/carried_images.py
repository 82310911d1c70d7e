"""Many small images in few bytes: shards as mosaics, for machines that nothing else reaches.

A 64×64 JPEG spends a third of its bytes on tables that are the same in all of them, and the rest on
more precision than a training run notices. Mosaics of a thousand tiles in AVIF hold the same images
in a third of the space, at some 28 dB from the originals. Validation images stay as they are.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder
from backbones.common.images import Pixels
from backbones.data.sources import open_split

TILES_A_SIDE = 32
"""Of a full mosaic."""

TRAIN_QUALITY = 50
"""AVIF's: some 650 bytes for each image of 64 by 64 pixels."""

SHARD_QUALITY = 92
"""Of the JPEGs that are made of mosaics again."""


def pack_shards(root: Path, folder: Path, val_images: int, train_images: int | None = None) -> None:
    """Write `ROOT/train-*.tar` as mosaics, and the first validation images as they are.

    Args:
        root: folder of shards whose training images are squares of one size.
        folder: where to write; made where it is missing.
        val_images: how many of the validation images.
        train_images: how many of the training images; None takes all.

    Raises:
        UserError: no shards, or training images of several sizes.
    """
    train, val = open_split(root, "train"), open_split(root, "val")
    make_folder(folder)
    count = len(train) if train_images is None else min(train_images, len(train))
    step = TILES_A_SIDE**2
    parts = [range(start, min(start + step, count)) for start in range(0, count, step)]
    for number, part in enumerate(parts):
        tiles = [_decode(train.read(index)[0]) for index in part]
        if len({tile.shape for tile in tiles}) > 1 or tiles[0].shape[0] != tiles[0].shape[1]:
            raise UserError(f"{root}: training images must be squares of one size to be packed")
        encoded = io.BytesIO()
        Image.fromarray(_join(tiles)).save(
            encoded, "AVIF", quality=TRAIN_QUALITY, speed=8, subsampling="4:2:0"
        )
        with atomic_write(folder / f"train-{number:04d}.avif") as file:
            file.write(encoded.getvalue())
    contents = {
        "side": tiles[0].shape[0],
        "train": [train.labels[part.start : part.stop] for part in parts],
        "classes": list(train.class_names),
    }
    with atomic_write(folder / "contents.json", "w") as text:
        json.dump(contents, text)
    # Together, what is the same in all of them is written once.
    examples = (val.read(index)[:2] for index in range(min(val_images, len(val))))
    _write_shard(folder / "val-0000.tar.xz", examples, "w:xz")


def unpack_shards(folder: Path, root: Path) -> None:
    """Make of what `pack_shards` wrote the shards of an ordinary dataset.

    Args:
        folder: as it was written.
        root: where to write; made where it is missing.

    Raises:
        UserError: the folder holds no such thing.
    """
    if not (folder / "contents.json").exists():
        raise UserError(f"{folder}: no contents.json: expected a folder that gpu_pack wrote")
    contents = json.loads((folder / "contents.json").read_text())
    make_folder(root)
    (root / "classes.json").write_text(json.dumps(contents["classes"]))

    def unpack(number: int) -> None:
        labels = contents["train"][number]
        with Image.open(folder / f"train-{number:04d}.avif") as image:
            tiles = _split(np.asarray(image.convert("RGB")), contents["side"])
        jpegs = (_encode(tile) for tile in tiles[: len(labels)])
        shard = root / f"train-{number:04d}.tar"
        _write_shard(shard, zip(jpegs, labels, strict=True), "w")

    with ThreadPoolExecutor() as pool:
        list(pool.map(unpack, range(len(contents["train"]))))
    with tarfile.open(folder / "val-0000.tar.xz") as packed:
        members = [(info, _content(packed, info)) for info in packed]
    with tarfile.open(root / "val-0000.tar", "w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))


def _write_shard(path: Path, examples: Iterator[tuple[bytes, int]], mode: str) -> None:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number, (data, label) in enumerate(examples):
            for suffix, content in (("jpg", data), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{path.name[:-4].partition('.')[0]}_{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    return b"" if file is None else file.read()


def _decode(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _encode(tile: Pixels) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(tile).save(encoded, "JPEG", quality=SHARD_QUALITY)
    return encoded.getvalue()


def _join(tiles: Sequence[Pixels]) -> Pixels:
    """Tiles row by row; what is missing in the last row is grey."""
    side = tiles[0].shape[0]
    columns = min(len(tiles), TILES_A_SIDE)
    rows = -(-len(tiles) // columns)
    grid = np.full((rows * columns, side, side, 3), 128, np.uint8)
    grid[: len(tiles)] = np.stack(tiles)
    grid = grid.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return grid.reshape(rows * side, columns * side, 3)


def _split(mosaic: Pixels, side: int) -> Pixels:
    """The tiles `uint8 [N, side, side, 3]` of a mosaic, row by row."""
    rows, columns = (length // side for length in mosaic.shape[:2])
    grid = mosaic.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(-1, side, side, 3))
