"""Files that are read part by part, held against reading them as a whole."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.common.errors import ImageError
from backbones.common.images import read_image
from detect.inference.geojson import write_geojson
from detect.media.large import LargeImage

rasterio = pytest.importorskip("rasterio")

# Of the test's own writing.
pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "ignore::PendingDeprecationWarning"
)


@pytest.fixture
def pixels() -> np.ndarray:
    """A smooth picture, which survives JPEG; `[H, W, 3]`."""
    y, x = np.mgrid[:300, :500]
    return np.stack([x / 2, y / 1.5, (x + y) / 4], axis=2).astype(np.uint8)


def write_geotiff(path, pixels, **options) -> None:
    bands = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype, "count": count}
    with rasterio.open(path, "w", **profile, height=height, width=width, **options) as file:
        file.write(bands)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".jp2"])
def test_a_part_is_that_of_the_whole(suffix, pixels, tmp_path):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(path)
    whole = read_image(path) if suffix != ".jp2" else torch.from_numpy(pixels).permute(2, 0, 1)
    with LargeImage(path) as image:
        assert (image.height, image.width, image.place) == (300, 500, None)
        part = image.read((130, 40, 430, 240), (200, 300)).int()
        assert (part - whole[:, 40:240, 130:430].int()).abs().max() <= 3
        # Means of four pixels.
        shrunk = image.read((130, 40, 430, 240), (100, 150)).float()
    means = torch.nn.functional.avg_pool2d(whole[:, 40:240, 130:430].float(), 2)
    assert (shrunk - means).abs().max() <= 3


def test_grey_palette_16_bit_and_bigtiff(pixels, tmp_path):
    grey = pixels[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    Image.fromarray(pixels).quantize(16).save(tmp_path / "palette.png")
    write_geotiff(tmp_path / "big.tif", pixels, BIGTIFF="YES", tiled=True)
    for name in ("grey.tif", "deep.tif", "palette.png", "big.tif"):
        whole = read_image(tmp_path / name)
        with LargeImage(tmp_path / name) as image:
            assert torch.equal(image.read((0, 0, 500, 300), (300, 500)), whole), name


def test_boxes_on_the_map(pixels, tmp_path):
    transform = rasterio.transform.from_origin(400_000, 5_800_000, 0.25, 0.5)
    write_geotiff(tmp_path / "map.tif", pixels, crs="EPSG:32633", transform=transform)
    with LargeImage(tmp_path / "map.tif") as image:
        place = image.place
    assert place.crs == "EPSG:32633"
    found = {
        "boxes": torch.tensor([[100.0, 40, 140, 60]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
    }
    write_geojson(tmp_path / "map.geojson", found, ["a", "b"], place)
    document = json.loads((tmp_path / "map.geojson").read_text())
    (feature,) = document["features"]
    assert feature["properties"] == {"class": "b", "score": 0.75}
    (ring,) = feature["geometry"]["coordinates"]
    # A quarter of a metre a column to the east, half a metre a row to the south.
    west, east, north, south = 400_025, 400_035, 5_799_980, 5_799_970
    assert ring == [[west, north], [west, south], [east, south], [east, north], [west, north]]
    assert document["crs"]["properties"]["name"] == "EPSG:32633"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("turned.jpg", "its orientation tag says that it is turned"),
        ("turned.tif", "its orientation tag says that it is turned"),
        ("bits.png", "pixels of 1 bits in RGB: expected 8 or 16 bits"),
        ("lab.tif", "pixels of 8 bits in CIELAB: expected 8 or 16 bits"),
        ("ink.jpg", "pixels of 8 bits in CMYK: expected 8 or 16 bits"),
        ("dark.tif", "the 16-bit pixels end at 1992 and would be seen as black"),
    ],
)
def test_what_would_be_shown_otherwise_than_as_a_whole_is_refused(name, message, pixels, tmp_path):
    image, turned = Image.fromarray(pixels), Image.Exif()
    turned[0x0112] = 6
    path = tmp_path / name
    if name.startswith("turned"):
        image.save(path, exif=turned)
    elif name == "dark.tif":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 8).save(path)
    else:
        image.convert({"bits.png": "1", "lab.tif": "LAB", "ink.jpg": "CMYK"}[name]).save(path)
    with pytest.raises(ImageError, match=f"{name}: {message}"):
        LargeImage(path)


def test_what_cannot_be_read_is_named(pixels, tmp_path):
    with pytest.raises(ImageError, match=r"missing\.tif: cannot read image: no such file"):
        LargeImage(tmp_path / "missing.tif")
    (tmp_path / "text.tif").write_text("no picture")
    with pytest.raises(ImageError, match=r"text\.tif: not an image in a known format"):
        LargeImage(tmp_path / "text.tif")
    write_geotiff(tmp_path / "float.tif", pixels.astype(np.float32))
    with pytest.raises(ImageError, match=r"float\.tif: pixels are float32: expected 8- or 16-bit"):
        LargeImage(tmp_path / "float.tif")
    write_geotiff(tmp_path / "cut.tif", pixels, tiled=True, blockxsize=64, blockysize=64)
    whole = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    with (
        LargeImage(tmp_path / "cut.tif") as image,
        pytest.raises(ImageError, match=r"cut\.tif: corrupt or truncated image"),
    ):
        image.read((0, 0, 500, 300), (300, 500))
