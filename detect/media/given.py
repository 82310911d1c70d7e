"""Images as a program gives them: files, arrays, tensors, Pillow's, and folders of files."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from backbones.common.addresses import without_secrets
from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES, from_pillow, read_image
from backbones.common.listing import files_in
from detect.media.containers import VIDEO_SUFFIXES

Image = str | os.PathLike[str] | np.ndarray | Tensor | PIL.Image.Image
"""A file, an `uint8` RGB array `[H, W, 3]`, an `uint8` RGB tensor `[3, H, W]`, or Pillow's,
of an animation the frame that it stands at."""

Folder = str | os.PathLike[str]

_NO_SERIES = (str, os.PathLike, np.ndarray, Tensor, PIL.Image.Image, bytes, Mapping)


def check_several(images: Any, taker: str) -> Iterable[Image]:
    """Images that may come one by one; raises `UserError`, beginning with `taker`, for others."""
    is_series = hasattr(images, "__iter__") or hasattr(images, "__getitem__")
    if isinstance(images, _NO_SERIES) or not is_series:
        is_path = isinstance(images, str | os.PathLike)
        got = repr(os.fspath(images)) if is_path else type(images).__name__
        raise UserError(f"{taker}, got {got}")
    return images


def to_tensor(image: Image, *, bgr: bool = False) -> Tensor:
    """An image as `uint8` RGB `[3, H, W]`.

    Args:
        image: what it is.
        bgr: an array or tensor has blue first; files and Pillow's images are as they say.

    Raises:
        ImageError: the file cannot be read.
        UserError: an array of another shape or dtype, or something else.
    """
    swapped = bgr and isinstance(image, np.ndarray | Tensor)
    if isinstance(image, PIL.Image.Image):
        image = from_pillow(image, "image")
    if is_video(image):
        raise ImageError(f"{image}: this is a video: detector.stream(...) takes it")
    if isinstance(image, str | os.PathLike):
        image = read_image(image)
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(
                f"an array must be uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
        image = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise UserError(
            "an image must be a file, an array, a tensor or an image of Pillow, "
            f"got {type(image).__name__}"
        )
    return image.flip(0) if swapped else image


def file_name(image: Image) -> str | None:
    """The name of an image that is a file, else None."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def is_folder(images: Any) -> TypeGuard[Folder]:
    """Whether they are named by their folder."""
    return isinstance(images, str | os.PathLike) and os.path.isdir(images)


def is_video(images: Any) -> TypeGuard[Folder]:
    """Whether they are named by a video that they are the frames of.

    Raises:
        ImageError: an address. The system, whose answer a traceback would show, is not asked for a
            file with these secrets.
    """
    if not isinstance(images, str | os.PathLike):
        return False
    name = os.fspath(images)
    if re.match(r"[a-z][a-z\d+.-]+:/", name, re.IGNORECASE) and not os.path.exists(name):
        raise ImageError(
            f"{without_secrets(name)}: an address, expected a file: download it, or give it to "
            "`lowres-rcnn infer --inputs`, which reads addresses"
        )
    return Path(name).suffix.lower() in VIDEO_SUFFIXES and not is_folder(name)


def image_files(folder: Folder) -> list[Path]:
    """The image files in a folder, by name, not in deeper ones.

    Raises:
        UserError: there are none.
    """
    files = files_in(Path(folder), IMAGE_SUFFIXES, str(folder))
    if not files:
        raise UserError(f"{folder}: no images in this folder")
    return files
