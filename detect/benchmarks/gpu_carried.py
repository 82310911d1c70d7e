"""What `tools.gpu_check` needs where nothing can be fetched: written here, read there."""

import tarfile
from pathlib import Path

from backbones.benchmarks.carried_images import pack_shards, unpack_shards
from backbones.common.errors import UserError
from backbones.common.files import make_folder

IMAGES, BCCD = "images", "bccd.tar.xz"


def pack(images: Path, bccd: Path, folder: Path, val_images: int) -> None:
    """Write both data sets into a folder.

    Args:
        images: folder of shards.
        bccd: folder in VOC's layout.
        folder: where to write.
        val_images: of the images, for validation.
    """
    if not (bccd / "Annotations").is_dir():
        raise UserError(f"{bccd}: no folder Annotations in it: expected BCCD in VOC's layout")
    make_folder(folder)
    with tarfile.open(folder / BCCD, "w:xz") as tar:
        for name in ("Annotations", "ImageSets", "JPEGImages"):
            tar.add(bccd / name, name)
    pack_shards(images, folder / IMAGES, val_images)


def unpack(folder: Path, work: Path) -> tuple[Path, Path]:
    """Make the data sets of it again; returns their folders, those of images and of BCCD."""
    if not (folder / BCCD).exists():
        raise UserError(f"{folder}: no {BCCD} in it: expected a folder that tools.gpu_pack wrote")
    images, bccd = work / "images", work / "bccd"
    with tarfile.open(folder / BCCD) as tar:
        tar.extractall(bccd, filter="data")
    unpack_shards(folder / IMAGES, images)
    return images, bccd
