"""The embedded default data: handwritten digits on photographs, made without any download.

The digits are the 8×8 scans that scikit-learn brings, the photographs those of scikit-learn and
scikit-image. Training and held-out images share neither scans nor photographs.
"""

import io
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbones.common.errors import UserError
from backbones.common.files import make_folder, umask, write_json
from backbones.common.images import read_image
from backbones.common.read_json import read_json
from detect.data.digit_scenes import Scene, draw_scene

VERSION = 1
"""Of the pictures that a seed gives; goes up with every change to them."""

PHOTOGRAPHS = {
    "train": (
        *("sklearn.datasets.images/china.jpg", "skimage.data/astronaut.png"),
        *("skimage.data/camera.png", "skimage.data/chelsea.png", "skimage.data/coffee.png"),
        *("skimage.data/gravel.png", "skimage.data/motorcycle_left.png"),
    ),
    "val": (
        *("sklearn.datasets.images/flower.jpg", "skimage.data/rocket.jpg"),
        *("skimage.data/brick.png", "skimage.data/grass.png"),
    ),
}
"""Files inside installed packages."""

HELD_OUT_SCANS = 360
"""The last scans of the 1,797, a fifth: the file is in order of writers, so that these are mostly
by writers that training does not see."""


@dataclass(frozen=True)
class _Settings:
    """What the pictures depend on; written to the annotations, and compared on the next call."""

    version: int
    seed: int
    train: int
    val: int
    image_size: int


def make_digits(
    folder: str | os.PathLike[str],
    seed: int = 0,
    train: int = 400,
    val: int = 100,
    image_size: int = 256,
) -> Path:
    """Generate the dataset in COCO's layout, or leave it as it is where it exists already.

    Writes `train/*.jpg`, `val/*.jpg` and `annotations/{train,val}.json`, with categories `0`..`9`
    of ids 1..10. Each image has 3 to 10 digits, 10 to 60 pixels high. The same settings
    give the same bytes (with the same versions of NumPy, OpenCV and Pillow). The folder appears
    whole or not at all; several processes may call this at once.

    Args:
        folder: to make; must be missing, empty, or hold a dataset of the same settings.
        seed: of everything random, 0 or more.
        train: number of training images.
        val: number of held-out images.
        image_size: width and height of the images in pixels, at least 128.

    Returns:
        `folder` as a path.

    Raises:
        UserError: the folder holds something else, or a setting is out of range.
    """
    folder = Path(folder)
    if seed < 0 or train < 1 or val < 1 or image_size < 128:
        raise UserError(
            "digits: expected seed >= 0, train >= 1, val >= 1 and image_size >= 128, got "
            f"seed={seed}, train={train}, val={val}, image_size={image_size}"
        )
    settings = _Settings(VERSION, seed, train, val, image_size)
    if _is_complete(folder, settings):
        return folder
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _generate(temporary, settings)
        temporary.chmod(0o777 & ~umask())
        try:
            # Fails if the folder is there and not empty.
            os.replace(temporary, folder)
        except OSError:
            # Another process may have been faster.
            if not _is_complete(folder, settings):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(folder: Path, settings: _Settings) -> bool:
    """Whether the folder holds the dataset of these settings; False if there is nothing in it."""
    if not os.path.exists(folder):
        return False
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: expected a folder for the digits dataset, this is a file")
    if not any(folder.iterdir()):
        return False
    try:
        found = read_json(folder / "annotations" / "val.json")["info"]["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: the folder is not empty and holds no digits dataset: name another"
        ) from error
    if found != asdict(settings):
        raise UserError(
            f"{folder}: holds digits made with {found}, wanted {asdict(settings)}: "
            "delete the folder or name another"
        )
    return True


def _generate(folder: Path, settings: _Settings) -> None:
    # Here, as it takes a second, which no other data should wait for.
    from sklearn.datasets import load_digits

    digits = load_digits()
    first_held_out = len(digits.images) - HELD_OUT_SCANS
    scans = {
        "train": np.arange(first_held_out),
        "val": np.arange(first_held_out, len(digits.images)),
    }
    # Ids are unique across splits, so that one results file can cover both.
    image_id = annotation_id = 1
    for number, (split, count) in enumerate((("train", settings.train), ("val", settings.val))):
        photographs = [_read_photograph(name) for name in PHOTOGRAPHS[split]]
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            random = np.random.default_rng([settings.seed, number, index])
            which = int(random.integers(len(photographs)))
            scene = draw_scene(
                photographs[which], digits.images, scans[split], settings.image_size, random
            )
            file_name = f"{image_id:06d}.jpg"
            (folder / split / file_name).write_bytes(_encode(scene.image))
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "width": settings.image_size,
                    "height": settings.image_size,
                    "photograph": PHOTOGRAPHS[split][which],
                }
            )
            new = _annotations(scene, image_id, annotation_id, digits.target)
            annotations += new
            annotation_id += len(new)
            image_id += 1
        document = {
            "info": {
                "description": "Handwritten digits on photographs",
                "settings": asdict(settings),
            },
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
        }
        write_json(folder / "annotations" / f"{split}.json", document)


def _annotations(
    scene: Scene, image_id: int, first_id: int, digit_of_scan: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": int(digit_of_scan[scan]) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "scan": scan,
        }
        for number, ((x1, y1, x2, y2), scan) in enumerate(
            zip(scene.boxes, scene.scans, strict=True)
        )
    ]


def _read_photograph(name: str) -> np.ndarray:
    """`uint8 [H, W, 3]`, at least 256 pixels a side."""
    package, file_name = name.split("/")
    with as_file(files(package).joinpath(file_name)) as path:
        return read_image(path).permute(1, 2, 0).numpy()


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()
