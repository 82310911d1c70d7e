"""Damaged images, and folders that cannot be written into."""

import contextlib
import io
import struct

import pytest
import torch
from PIL import Image

from backbones.errors import ImageError, UserError
from backbones.files import decode_image, make_folder


def encoded(file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 50, 0)).save(buffer, format=file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_a_truncated_image_is_an_image_error(file_format):
    data = encoded(file_format)
    assert decode_image(data, "a").shape == (3, 10, 20)
    with pytest.raises(ImageError, match="a: "):
        decode_image(data[: len(data) // 2], "a")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"II*\0", b"II*\0\x08\0\0", b"MM\0*" + struct.pack(">L", 9999)])
def test_damaged_exif_is_an_image_error_or_harmless(file_format, exif):
    data = encoded(file_format, exif=b"Exif\0\0" + exif)
    with contextlib.suppress(ImageError):
        image = decode_image(data, "a")
        assert image.shape == (3, 10, 20)
        assert image.dtype == torch.uint8


def test_a_folder_to_write_into(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot write into this folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="inside: cannot write into this folder"):
        make_folder(tmp_path / "file" / "inside")
