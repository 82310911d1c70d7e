"""The one place where images are decoded, read and written; JPEG also at a fraction of its size."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from backbones.common.errors import ImageError, ImageTooLargeError
from backbones.common.files import atomic_write

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

Pixels: TypeAlias = np.ndarray
"""`uint8 [H, W, 3]`, RGB."""

_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(struct.error, KeyError, TypeError, ZeroDivisionError),
)
"""What Pillow raises on damaged data: the first in its decoders (SyntaxError for broken PNG
chunks), the others where the EXIF tags are read."""

# The flags IMREAD_REDUCED_COLOR_2, _4 and _8 ask for BGR in their lowest bit.
_OPENCV_FLAGS = {
    1: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_JPEG_END = b"\xff\xd9"
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


class EncodedImage:
    """An image file in memory, upright as its EXIF tag says; a JPEG waits to be decoded.

    A JPEG decodes at 1/2, 1/4 or 1/8 of its size for less, as its blocks of 8×8 pixels are
    transformed to fewer pixels, each the mean of those it replaces. So draw the crop from `height`
    and `width`, and decode at `reduction` of that crop.

    Args:
        data: the file.
        name: of the file, for error messages.

    Raises:
        ImageError: empty, damaged, too large, or no image.
    """

    def __init__(self, data: bytes, name: str) -> None:
        if not data:
            raise ImageError(f"{name}: the image file is empty")
        self.name = name
        self._data = data
        self._orientation = 1
        with _image_errors(name):
            self._image: Image.Image = Image.open(io.BytesIO(data))
            if isinstance(self._image, JpegImageFile):
                self._orientation = self._image.getexif().get(ExifTags.Base.Orientation, 1)
            else:
                # Other formats decode whole, and some have turned the pixels by then.
                self._image.load()
                ImageOps.exif_transpose(self._image, in_place=True)
        self.width, self.height = self._image.size
        if self._orientation in _TURNED:
            self.width, self.height = self.height, self.width

    def reduction(self, height: int, width: int, size: int) -> int:
        """The largest divisor that leaves a crop of `height` by `width` at least `size` pixels.

        8, 4, 2 or 1; always 1 where the format is not JPEG.
        """
        if not isinstance(self._image, JpegImageFile):
            return 1
        return next((k for k in (8, 4, 2) if min(height, width) >= k * size), 1)

    def decode(self, reduction: int = 1) -> Pixels:
        """RGB pixels at 1/`reduction` of the size, rounded up; to be called once.

        Grey, palette, CMYK and 16-bit files are converted; transparency is dropped.

        Raises:
            ImageError: corrupt or truncated.
        """
        if (pixels := self._decode_plain_jpeg(reduction)) is not None:
            return pixels
        image = self._image
        with _image_errors(self.name), image:
            if image.mode.startswith("I;16"):
                # Pillow would clip 16-bit grey to 255 instead of scaling it.
                grey = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))

    def _decode_plain_jpeg(self, reduction: int) -> Pixels | None:
        """The same pixels a little sooner: OpenCV hands out its array, Pillow a copy.

        None for what OpenCV reads otherwise than Pillow. It takes a truncated file for a whole one
        with a grey rest, but such a file lacks its end marker, which cannot stand in the middle.
        """
        image = self._image
        plain = isinstance(image, JpegImageFile) and image.mode in ("L", "RGB")
        if not plain or self._orientation != 1 or not self._data.endswith(_JPEG_END):
            return None
        buffer = np.frombuffer(self._data, np.uint8)
        pixels: Pixels | None = cv2.imdecode(buffer, _OPENCV_FLAGS[reduction])
        return pixels


def decode_image(data: bytes, name: str) -> Tensor:
    """Decode an image file held in memory to `uint8 [3, H, W]`, RGB, upright.

    Raises:
        ImageError: as `EncodedImage` and its `decode`; the message begins with `name`.
    """
    pixels = EncodedImage(data, name).decode()
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: image too large: {error}") from error
    except _DAMAGE as error:
        raise ImageError(f"{name}: corrupt or truncated image: {error}") from error


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file as a `uint8` RGB tensor `[3, H, W]`, upright as its EXIF tag says.

    Grey, palette, CMYK and 16-bit files are converted; transparency is dropped.

    Raises:
        ImageError: the file is missing, truncated, or no image; the message names it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot read image: {error.strerror or error}") from error
    return decode_image(data, name=str(path))


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file in pixels, upright as its EXIF tag says.

    The head of the file is read and nothing decoded: that the rest can be is not known by it.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        with _image_errors(str(path)), Image.open(path) as image:
            # Some versions of Pillow turn a TIFF's size when they open it; its tags stay.
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            width, height = tags.get(256, image.width), tags.get(257, image.height)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    except OSError as error:
        raise ImageError(f"{path}: cannot read image: {error.strerror or error}") from error
    return (height, width) if turned else (width, height)


def write_image(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write a `uint8` RGB tensor `[3, H, W]` atomically, in the format that the suffix names."""
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    with atomic_write(path) as file:
        pixels.save(file, format=Image.registered_extensions()[Path(path).suffix.lower()])
