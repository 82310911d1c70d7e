"""Formats, orientation, damage: what comes out of image files, whole and reduced."""

import contextlib
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.common.errors import ImageError
from backbones.common.images import EncodedImage, decode_image

ORIENTATION = 0x0112


def gradient(height=96, width=160) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    red, green = 255 * columns / width, 255 * rows / height
    pixels = np.stack([red, green, (red + green) / 2], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def reference(data: bytes, reduction: int) -> np.ndarray:
    """Means over blocks of the whole image, as Pillow decodes it."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    height, width = (side // reduction for side in pixels.shape[:2])
    blocks = pixels[: height * reduction, : width * reduction]
    return blocks.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"progressive": True}])
def test_a_reduced_jpeg_holds_the_means_of_its_blocks(reduction, mode, options):
    if mode != "RGB":
        options = {key: value for key, value in options.items() if key != "subsampling"}
    data = encoded(gradient().convert(mode), "JPEG", quality=95, **options)
    pixels = EncodedImage(data, "a").decode(reduction)
    assert pixels.dtype == np.uint8
    expected = reference(data, reduction)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 1.5


@pytest.mark.parametrize("size", [(375, 500), (47, 33), (8, 9)])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_opencv_and_pillow_decode_the_same_pixels(size, reduction):
    data = encoded(gradient(*size), "JPEG", quality=90)
    plain = EncodedImage(data, "a")
    assert plain._decode_plain_jpeg(reduction) is not None
    # A byte behind the end marker leaves the file to Pillow.
    padded = EncodedImage(data + b"\0", "a")
    assert padded._decode_plain_jpeg(reduction) is None
    pixels = plain.decode(reduction)
    assert pixels.shape == (-(-size[0] // reduction), -(-size[1] // reduction), 3)
    assert np.abs(pixels.astype(int) - padded.decode(reduction)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("file_format", "reduction"), [("JPEG", 1), ("JPEG", 4), ("PNG", 1)])
def test_images_are_upright(orientation, file_format, reduction):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(gradient(), file_format, exif=exif)
    image = EncodedImage(data, "a")
    turned = orientation >= 5
    assert (image.height, image.width) == ((160, 96) if turned else (96, 160))
    pixels = image.decode(reduction).astype(int)
    assert pixels.shape[:2] == (image.height // reduction, image.width // reduction)
    # Where the stored top left corner, the dark one, belongs: EXIF 2.3, 4.6.4.A.
    bottom = orientation in (3, 4, 7, 8)
    right = orientation in (2, 3, 6, 7)
    corners = {(row, column): pixels[-row, -column].sum() for row in (0, 1) for column in (0, 1)}
    assert min(corners, key=corners.__getitem__) == (int(bottom), int(right))


def test_sixteen_bit_grey_is_scaled():
    values = np.linspace(0, 65535, 160).astype(np.uint16)[None].repeat(96, axis=0)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"), "a")
    assert pixels.shape == (3, 96, 160)
    assert torch.equal(pixels[0, 0], torch.from_numpy((values[0] >> 8).astype(np.uint8)))
    assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "1", "CMYK"])
def test_other_modes_are_converted(mode):
    image = gradient().convert(mode)
    pixels = decode_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), "a")
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_an_image_error(file_format):
    data = encoded(gradient(), file_format)
    assert decode_image(data, "a").shape == (3, 96, 160)
    with pytest.raises(ImageError, match="a: "):
        decode_image(data[: len(data) // 2], "a")


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_jpeg_cut_off_anywhere_is_an_image_error(reduction):
    # The thumbnail's end marker is inside the file.
    exif = Image.Exif()
    thumbnail = encoded(gradient(16, 16), "JPEG")
    exif[0x010E] = "a thumbnail: " + thumbnail.decode("latin-1")
    data = encoded(gradient(), "JPEG", exif=exif.tobytes() + thumbnail)
    assert data.count(b"\xff\xd9") > 1
    inside = data.index(b"\xff\xd9") + 2
    for cut in (1, 20, inside, len(data) // 2, len(data) - 200, len(data) - 3):
        with pytest.raises(ImageError, match="a: "):
            EncodedImage(data[:cut], "a").decode(reduction)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"II*\0", b"II*\0\x08\0\0", b"MM\0*" + struct.pack(">L", 9999)])
def test_damaged_exif_is_an_image_error_or_harmless(file_format, exif):
    data = encoded(gradient(), file_format, exif=b"Exif\0\0" + exif)
    with contextlib.suppress(ImageError):
        image = decode_image(data, "a")
        assert image.shape == (3, 96, 160)
        assert image.dtype == torch.uint8
