"""Formats, orientation, damage: what comes out of image files, whole and reduced."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps, TiffImagePlugin

from backbones.common.errors import ImageError, OutputError
from backbones.common.images import (
    IMAGE_SUFFIXES,
    EncodedImage,
    decode_image,
    read_image,
    read_image_size,
    write_image,
)

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


def test_a_file_that_is_read_is_of_a_known_format_whatever_its_name(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for this."""
    started = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for read in (read_image, read_image_size):
        with pytest.raises(ImageError, match=r"a\.jpg: not an image in a known format"):
            read(tmp_path / "a.jpg")
    assert not started.exists()


@pytest.mark.parametrize(
    ("suffix", "file_format"),
    [("jfif", "JPEG"), ("gif", "GIF"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("ppm", "PPM")],
)
def test_less_usual_formats_are_read(suffix, file_format, tmp_path):
    assert f".{suffix}" in IMAGE_SUFFIXES
    gradient().save(tmp_path / f"a.{suffix}", file_format)
    pixels = read_image(tmp_path / f"a.{suffix}").permute(1, 2, 0).numpy().astype(int)
    # A palette of 256 colours is as coarse as it gets.
    assert np.abs(pixels - np.asarray(gradient())).mean() < 12


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "floating-point pixels have no agreed white"),
        (np.linspace(0, 60000, 64).astype(np.int32), "signed or 32-bit pixels have no agreed"),
        (np.linspace(0, 4095, 64).astype(np.uint16), "16-bit pixels end at 4095 and would be seen"),
    ],
)
def test_numbers_that_would_be_seen_as_black_are_refused(values, words, tmp_path):
    Image.fromarray(np.tile(values, (8, 1))).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=rf"a\.tif: .*{words}"):
        read_image(tmp_path / "a.tif")


def test_sixteen_bits_of_a_pgm_are_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5\n2 1\n65535\n\x80\x00\xff\xff")
    assert read_image(tmp_path / "a.pgm")[0].tolist() == [[0x80, 0xFF]]


def test_further_pictures_of_a_file_are_not_lost(tmp_path):
    first, second = gradient(), gradient(48, 80)
    for name, kind in (("a.tif", "pages"), ("a.gif", "frames"), ("a.webp", "frames")):
        first.save(tmp_path / name, save_all=True, append_images=[ImageOps.mirror(first)])
        with pytest.raises(ImageError, match=rf"{name}: has several {kind}"):
            read_image(tmp_path / name)
    # A smaller copy of the first page, and what cameras add to a JPEG, are no further pictures.
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / "b.tif", new=True) as pyramid:
        first.save(pyramid, "TIFF")
        pyramid.newFrame()
        second.save(pyramid, "TIFF", tiffinfo={254: 1})
    first.save(tmp_path / "b.mpo", save_all=True, append_images=[second])
    for name in ("b.tif", "b.mpo"):
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 2
        assert read_image(tmp_path / name).shape == (3, 96, 160)


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "zero.jpg", "loop.jpg", "folder.jpg", "a\0.jpg", "\ud800.jpg"):
        for read in (read_image, read_image_size):
            with pytest.raises(ImageError, match="cannot read image: "):
                read(tmp_path / name)


def test_an_image_of_too_many_pixels_is_refused_in_words(tmp_path):
    data = bytearray(encoded(gradient(), "PNG"))
    data[16:24] = struct.pack(">2I", 20_001, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageError, match=r"a: more than 200 megapixels, .*cut it into parts"):
        decode_image(bytes(data), "a")


def test_an_image_that_its_format_cannot_hold_is_not_written(tmp_path):
    with pytest.raises(OutputError, match=r"a\.jpg: cannot write an image of 70000x1 pixels"):
        write_image(tmp_path / "a.jpg", torch.zeros(3, 1, 70_000, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())
