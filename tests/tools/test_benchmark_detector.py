import json
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tool_runs import error_of, run
from helpers.untrained_detector import save_untrained
from PIL import Image

from detect.data import make_digits
from detect.streaming import IMAGES_PER_BATCH
from tools import benchmark_detector


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict:
    """A configuration of two points, with an untrained detector."""
    folder = tmp_path_factory.mktemp("speed")
    digits = make_digits(folder / "digits", train=1, val=3, image_size=128)
    weights = save_untrained(folder / "x.safetensors", 10)
    return {
        "data": {"format": "coco", "root": str(digits)},
        "split": "val",
        "points": [
            {"name": "five crops", "weights": str(weights), "precision": "fp32"},
            {"name": "two crops", "weights": str(weights), "model": {"proposals_per_image": 2}},
        ],
        "repeats": 1,
        "output": str(folder / "out"),
    }


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("backbones.benchmarks.timing.MIN_SECONDS", 0.0)
    monkeypatch.setattr("detect.benchmarks.speed_accuracy.CROP_COUNTS", (1, 3))
    monkeypatch.setattr("detect.benchmarks.speed_accuracy.IMAGE_COUNTS", (1, 2))


def write(folder, values) -> str:
    path = folder / "speed_accuracy.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_points_and_costs(base, tmp_path, monkeypatch, capsys):
    config = write(tmp_path, base | {"output": str(tmp_path)})
    assert run(benchmark_detector, "--config", config, monkeypatch=monkeypatch) == 0
    written = json.loads((tmp_path / "speed_accuracy.json").read_text())
    five, two = written["rows"]["five crops"], written["rows"]["two crops"]
    assert (five["crops"], two["crops"]) == (5, 2)
    for row in (five, two):
        assert all(seconds > 0 for seconds in row["stages"].values())
        own = {k: v for k, v in row["stages"].items() if k not in ("decode", "draw")}
        networks = own["proposal network"] + own["crop network"]
        assert row["network_share"] == pytest.approx(networks / sum(own.values()))
        assert row["images_per_second"] > 0
        assert row["images_per_second_in_turns"] > 0
    assert list(written["cost"]["crops"]) == ["1", "3"]
    assert (tmp_path / "speed_accuracy.md").read_text() in capsys.readouterr().out
    for name in ("speed_accuracy.png", "cost.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500


def test_a_peer_sees_every_image_of_the_split(base, tmp_path, monkeypatch):
    seen = []
    threads = torch.get_num_threads()

    class YOLO:
        def __init__(self, weights):
            assert weights == "yolo11n.yaml"

        def predict(self, listed, stream, **options):
            assert self.model.nc == 3
            torch.set_num_threads(threads + 1)
            for path in Path(listed).read_text().splitlines():
                assert Path(path).is_absolute()
                seen.append(
                    (path, *(options[key] for key in ("imgsz", "conf", "max_det", "batch")))
                )
                yield
                assert torch.get_num_threads() == threads

    tasks = types.ModuleType("ultralytics.nn.tasks")
    tasks.DetectionModel = lambda weights, nc, verbose: types.SimpleNamespace(nc=nc)
    monkeypatch.setitem(sys.modules, "ultralytics.nn", types.ModuleType("ultralytics.nn"))
    monkeypatch.setitem(sys.modules, "ultralytics.nn.tasks", tasks)
    module = types.ModuleType("ultralytics")
    module.YOLO = YOLO
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    peer = {"name": "peer", "weights": "yolo11n.yaml", "image_size": 96, "AP": 0.5}
    peer["num_classes"] = 3
    config = write(tmp_path, base | {"peers": [peer], "output": str(tmp_path)})
    assert run(benchmark_detector, "--config", config, monkeypatch=monkeypatch) == 0
    row = json.loads((tmp_path / "speed_accuracy.json").read_text())["rows"]["peer"]
    assert row["AP"] == 0.5
    assert len({path for path, *_ in seen}) == 3
    assert {tuple(options) for _, *options in seen} == {(96, 0.001, 100, IMAGES_PER_BATCH)}
    assert torch.get_num_threads() == threads


def test_mistakes_are_one_line(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    same = {**base["points"][0]}
    for changes, words in [
        ({"points": [same, dict(same)]}, "points and peers must have different names"),
        ({"score_thresh": 2}, "score_thresh must be in [0, 1], got 2"),
        ({"calibration_split": "train"}, "int8 and calibration_split belong together"),
        (
            {"points": [same | {"precision": "int8"}], "calibration_split": "val"},
            "calibration_split must be another split than the one that is scored, val",
        ),
        ({"points": []}, "must have different names, at least one"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"peers": [{"name": "p", "weights": "yolo11n.yaml"}]}, "pip install ultralytics"),
        (
            {"peers": [{"name": "p", "weights": "yolo11n.pt", "num_classes": 3}]},
            "num_classes of p is for a .yaml",
        ),
        ({"points": [same | {"weights": "none.safetensors"}]}, "none.safetensors: no such file"),
    ]:
        config = write(tmp_path, base | changes)
        arguments = ["--config", config]
        assert words in error_of(
            benchmark_detector, *arguments, monkeypatch=monkeypatch, capsys=capsys
        )
