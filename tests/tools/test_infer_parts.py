"""Images that are read part by part, through `infer` and the tool that measures it."""

import json

import pytest
import torch
from helpers.untrained_detector import save_untrained

from backbones.common.images import read_image, write_image
from detect import detector as in_use
from detect.benchmarks.area import AreaConfig, measure_area
from detect.checkpoint import load_detector
from detect.inference.annotate import infer
from detect.media.sources import find_inputs

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few hundred pixels."""
    monkeypatch.setattr(in_use, "LARGE_PIXELS", 20_000)
    monkeypatch.setattr("detect.blocks.BLOCK", 128)
    monkeypatch.setattr("detect.blocks.MARGIN", 32)


@pytest.fixture
def weights(tmp_path):
    return save_untrained(tmp_path / "x.safetensors", 3)


def noise(height: int, width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (1, 3, height // 8, width // 8), generator=random).float()
    return torch.nn.functional.interpolate(coarse, (height, width)).byte()[0]


def test_a_file_in_parts_is_detected_in_as_a_tensor_in_parts(
    small_blocks, weights, tmp_path, caplog
):
    image = noise(240, 320)
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "small.png", image[:, :100, :160])
    with rasterio.open(
        *(folder / "map.tif", "w"),
        **{"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 240, "width": 320},
        crs="EPSG:32633",
    ) as file:
        file.write(image.numpy())
    whole = (folder / "map.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    detector = load_detector(weights, "cpu", {"learned": {"scale": 1.0}})
    report = infer(detector, find_inputs([str(folder)]), tmp_path / "out", score_thresh=0.0)
    assert (report.images, len(report.errors)) == (2, 1)
    assert "cut.tif: corrupt or truncated image" in report.errors[0]
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [(image["width"], image["height"]) for image in images] == [(160, 100), (320, 240)]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [row for row in rows if row["image_id"] == images[1]["id"]]
    expected = detector(image, score_thresh=0.0)
    boxes = expected["boxes"]
    # Larger ones may be found in the smaller image, which GDAL makes otherwise than torch, and
    # then suppress others.
    small = (boxes[:, 2:] - boxes[:, :2]).max(dim=1).values < 1.5 * 32
    want = torch.column_stack([boxes[small], expected["scores"][small]])
    kept = [[*row["bbox"], row["score"]] for row in found if max(row["bbox"][2:]) < 1.5 * 32]
    got = (
        torch.tensor(kept)
        + torch.tensor([[0, 0, 1, 1, 0]]) * torch.tensor(kept)[:, [0, 1, 0, 1, 4]]
    )
    for one, other in ((want, got), (got, want)):
        apart = torch.cdist(one, other, p=float("inf")).min(dim=1).values
        assert len(one) > 20
        assert (apart < 0.02).float().mean() > 0.95
    assert read_image(tmp_path / "out" / "map.jpg").shape == (3, 240, 320)
    features = json.loads((tmp_path / "out" / "map.geojson").read_text())["features"]
    assert len(features) == len(found)
    assert not (tmp_path / "out" / "small.geojson").exists()
    # What stands beside a picture that is gone is written again with it.
    (tmp_path / "out" / "map.geojson").write_text("{}")
    (tmp_path / "out" / "map.jpg").unlink()
    again = infer(
        *(detector, find_inputs([str(folder)]), tmp_path / "out"), score_thresh=0.0, resume=True
    )
    assert (again.images, again.errors) == (report.images, report.errors)
    written = json.loads((tmp_path / "out" / "map.geojson").read_text())
    assert len(written["features"]) == len(found)


def test_what_is_seen_as_a_whole_is_not_read_in_parts(small_blocks, weights, tmp_path):
    write_image(tmp_path / "image.png", noise(240, 320))
    detector = load_detector(weights, "cpu")
    infer(detector, find_inputs([str(tmp_path / "image.png")]), tmp_path / "out", score_thresh=0.0)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(rows) == len(detector(noise(240, 320), score_thresh=0.0)["boxes"])
    with pytest.raises(ValueError, match=r"set model\.learned\.scale"):
        detector.detect_parts(None)


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_the_cost_of_area_is_measured(suffix, weights, tmp_path):
    write_image(tmp_path / "part.png", noise(64, 96))
    config = AreaConfig(
        weights=str(weights),
        image=str(tmp_path / "part.png"),
        megapixels=(0.04,),
        suffix=suffix,
        output=str(tmp_path / "out"),
    )
    table = measure_area(config)
    (row,) = json.loads((tmp_path / "out" / "area.json").read_text())["rows"]
    assert row["megapixels"] == 0.04
    assert row["seconds"] > 0.5
    assert row["megabytes"] > 100
    assert "| 0 |" in table
    assert (tmp_path / "out" / "area.png").exists()
