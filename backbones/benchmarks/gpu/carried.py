"""Data for machines that nothing else reaches, in few bytes: small images, and BCCD.

A 64×64 JPEG spends a third of its bytes on tables that are the same in all of them, and the rest on
more precision than a training run notices: tiny-imagenet's 45,450 would be 88 MB. In WebP they are
31 MB, at 26.7 dB from the originals; a third of the images would fit as they are, and a network
learns more from all of them. Validation images stay as they are.
"""

import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from backbones.common.errors import UserError
from backbones.common.files import make_folder, write_json
from backbones.data.sources import open_split

SHARD = 2000
"""Images of a file."""

QUALITY, QUALITY_UNPACKED = 18, 92
"""WebP's, some 690 bytes for an image of 64 by 64 pixels; of the JPEGs made of them again, which
are decoded in two thirds of the time."""

CLASSES, BCCD = "classes.json", "bccd.tar.gz"


def pack(images: Path, bccd: Path, folder: Path, val_images: int) -> None:
    """Write both data sets into a folder.

    Args:
        images: folder of images, as of `open_split`.
        bccd: folder in VOC's layout.
        folder: where to write; made where it is missing.
        val_images: how many of the validation images, the first ones.

    Raises:
        UserError: no such data.
    """
    if not os.path.isdir(bccd / "Annotations"):
        raise UserError(f"{bccd}: no folder Annotations in it: expected BCCD in VOC's layout")
    train = open_split(images, "train")
    val = open_split(images, "val", train.class_names)
    make_folder(folder)
    with tarfile.open(folder / BCCD, "w:gz") as tar:
        for name in ("Annotations", "ImageSets", "JPEGImages"):
            tar.add(bccd / name, name)

    def pack_shard(start: int) -> None:
        indices = range(start, min(start + SHARD, len(train)))
        examples = (train.read(index)[:2] for index in indices)
        path = folder / f"train-{start // SHARD:04d}.tar.gz"
        _write_shard(path, ((_as(data, "WEBP", QUALITY), label) for data, label in examples))

    with ThreadPoolExecutor() as pool:
        list(pool.map(pack_shard, range(0, len(train), SHARD)))
    chosen = range(min(val_images, len(val)))
    _write_shard(folder / "val-0000.tar.gz", (val.read(index)[:2] for index in chosen))
    write_json(folder / CLASSES, list(train.class_names))


def unpack(folder: Path, work: Path) -> tuple[Path, Path]:
    """Make ordinary data sets of what `pack` wrote.

    Returns:
        Folders in `work`: of shards, and in VOC's layout.

    Raises:
        UserError: the folder holds no such thing.
    """
    if not os.path.exists(folder / CLASSES):
        raise UserError(f"{folder}: no {CLASSES}: expected a folder that tools.gpu_pack wrote")
    images, bccd = make_folder(work / "images"), work / "bccd"
    (images / CLASSES).write_bytes((folder / CLASSES).read_bytes())
    with tarfile.open(folder / BCCD) as tar:
        tar.extractall(bccd, filter="data")

    def unpack_shard(path: Path) -> None:
        examples = _read_shard(path)
        if path.name.startswith("train"):
            examples = ((_as(data, "JPEG", QUALITY_UNPACKED), label) for data, label in examples)
        _write_shard(images / path.stem, examples)

    with ThreadPoolExecutor() as pool:
        list(pool.map(unpack_shard, folder.glob("*-*.tar.gz")))
    return images, bccd


def _write_shard(path: Path, examples: Iterable[tuple[bytes, int]]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for number, (data, label) in enumerate(examples):
            # Whichever format it is: readers look for themselves.
            for suffix, content in (("jpg", data), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{path.name.partition('.')[0]}_{number:05d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _read_shard(path: Path) -> Iterator[tuple[bytes, int]]:
    with tarfile.open(path) as tar:
        contents = [file.read() for info in tar if (file := tar.extractfile(info)) is not None]
    return zip(contents[::2], map(int, contents[1::2]), strict=True)


def _as(data: bytes, form: str, quality: int) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(encoded, form, quality=quality)
    return encoded.getvalue()
