"""The one place where images are decoded, read and written; JPEG also at a fraction of its size."""

import io
import os
import warnings
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

from backbones.common.errors import ImageError, ImageTooLargeError, OutputError
from backbones.common.files import atomic_write
from backbones.common.regular_files import open_file, read_file

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
"""Of Pillow's formats those that are pictures and nothing else: it would start Ghostscript for what
begins like EPS, whatever its name."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".apng", ".png", ".webp", ".tif", ".tiff"),
        *(".bmp", ".gif", ".avif", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
        *(".pbm", ".pgm", ".pnm", ".ppm"),
    }
)

MAX_PIXELS = 200_000_000
"""Of an image: as many as the largest cameras make, for which reading takes 1.5 GB."""

# Pillow refuses twice its limit; from the limit on it prints a warning, which says no more.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_DARKEST = 1 << 12
"""16-bit pixels that all lie below this would be read as black, or nearly."""

_PAGES = 32
"""Of a TIFF that are looked at; smaller copies of an image, each half the last, are never more."""

Pixels: TypeAlias = np.ndarray
"""`uint8 [H, W, 3]`, RGB."""

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
        ImageError: empty, damaged, too large, no image, one of several in its file, or in numbers
            that have no agreed black and white.
    """

    def __init__(self, data: bytes, name: str) -> None:
        if not data:
            raise ImageError(f"{name}: the image file is empty")
        self.name = name
        self._data = data
        self._orientation = 1
        with _image_errors(name):
            self._image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_numbers(self._image, name)
            _check_alone(self._image, name)
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
            ImageError: corrupt or truncated, or 16-bit pixels that would all be black.
        """
        image = self._image
        with _image_errors(self.name), image:
            if (pixels := self._decode_plain_jpeg(reduction)) is not None:
                return pixels
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return _rgb(ImageOps.exif_transpose(image), self.name)

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


def _check_numbers(image: Image.Image, name: str) -> None:
    """Raise `ImageError` where nothing says which number is white, so that most would be black."""
    is_sixteen_bits = image.format == "PPM" and image.mode == "I"
    if image.mode in ("I", "F") and not is_sixteen_bits:
        kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
        raise ImageError(f"{name}: {kind} pixels have no agreed white: save 8 or 16 bits")


def _check_alone(image: Image.Image, name: str) -> None:
    """Raise `ImageError` where a file has more pictures than its first.

    What cameras (MPO) and pyramids (TIFF) add to a picture are copies and masks of it.
    """
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    if isinstance(image, TiffImageFile) and not _has_other_pages(image):
        return
    kind = "pages" if isinstance(image, TiffImageFile) else "frames, an animation"
    raise ImageError(f"{name}: has several {kind}: save each as an image of its own")


def _has_other_pages(image: TiffImageFile) -> bool:
    try:
        for page in range(1, _PAGES):
            image.seek(page)
            # NewSubfileType: 1 is a smaller copy, 4 a mask.
            if not image.tag_v2.get(254, 0) & 5:
                return True
    except EOFError:
        image.seek(0)
        return False
    return True


def check_white(values: np.ndarray, name: str) -> None:
    """Raise `ImageError` where 16-bit pixels, which are seen as 0 to 65535, would all be black."""
    highest = int(values.max())
    if 0 < highest < _DARKEST:
        raise ImageError(
            f"{name}: the 16-bit pixels end at {highest} and would be seen as black: scale them to "
            "65535, or save 8 bits"
        )


def from_pillow(image: Image.Image, name: str) -> Tensor:
    """An image of Pillow as `decode_image` gives its file; raises as that does."""
    with _image_errors(name):
        _check_numbers(image, name)
        return torch.from_numpy(_rgb(ImageOps.exif_transpose(image), name)).permute(2, 0, 1)


def _rgb(image: Image.Image, name: str) -> Pixels:
    if image.mode.startswith("I"):
        # Grey from 0 to 65535, which Pillow would clip to 255 instead of scaling it.
        values = np.asarray(image)
        check_white(values, name)
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


@contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Whatever a codec raises, and of damaged data they raise all kinds, is the file's fault."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name}: not an image in a known format and kind of pixels; formats are "
            f"{', '.join(_FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name}: more than {MAX_PIXELS // 10**6} megapixels, the most that are read at once: "
            "make it smaller, or cut it into parts"
        ) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: corrupt or truncated image: {reason}") from error


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image file as a `uint8` RGB tensor `[3, H, W]`, upright as its EXIF tag says.

    Grey, palette, CMYK and 16-bit files are converted; transparency is dropped.

    Raises:
        ImageError: the file is missing, no regular file, or as in `EncodedImage`; the message
            names it.
    """
    pixels = open_image(path).decode()
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_image(path: str | os.PathLike[str]) -> EncodedImage:
    """An image file in memory; raises as `read_image`."""
    try:
        data = read_file(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot read image: {error.strerror or error}") from error
    return EncodedImage(data, str(path))


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image file in pixels, upright as its EXIF tag says.

    The head of the file is read and nothing decoded: that the rest can be is not known by it.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        with open_file(path) as file, _image_errors(str(path)):
            image = Image.open(file, formats=_FORMATS)
            # Some versions of Pillow turn a TIFF's size when they open it; its tags stay.
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            width, height = tags.get(256, image.width), tags.get(257, image.height)
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
    except OSError as error:
        raise ImageError(f"{path}: cannot read image: {error.strerror or error}") from error
    return (height, width) if turned else (width, height)


def write_image(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write a `uint8` RGB tensor `[3, H, W]` atomically, in the format that the suffix names.

    Raises:
        OutputError: no format has this suffix, or it cannot hold an image of this size.
        DiskError: the disk refuses it.
    """
    pixels, encoded = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
    try:
        pixels.save(encoded, format=Image.registered_extensions()[Path(path).suffix.lower()])
    except KeyError as error:
        raise OutputError(
            f"{path}: expected a name that ends in .jpg, .png or another suffix of an image"
        ) from error
    except (OSError, ValueError) as error:
        size = f"{pixels.width}x{pixels.height}"
        raise OutputError(f"{path}: cannot write an image of {size} pixels: {error}") from error
    with atomic_write(path) as file:
        file.write(encoded.getbuffer())
