"""Training with splits that hold no objects."""

import json

import pytest
from helpers.fit import given_to_fit
from helpers.shapes import make_shapes
from helpers.tiny_detector import TINY

from backbones.common.config import from_dict
from detect.config import DetectorConfig
from detect.training.train import train_detector


@pytest.mark.parametrize("has_objects", [True, False])
def test_a_split_without_objects_chooses_no_epoch(has_objects, tmp_path, monkeypatch, caplog):
    folder = make_shapes(tmp_path / "shapes", 8, seed=0)
    document = json.loads((folder / "annotations" / "train.json").read_text())
    if not has_objects:
        document["annotations"] = []
    (folder / "annotations" / "val.json").write_text(json.dumps(document))
    (folder / "val").symlink_to(folder / "train")
    data = {"format": "coco", "root": str(folder), "train": "train", "val": "val"}
    model = TINY["model"] | {"rcnn": {"crop_size": 79}}
    settings = {"model": model, "data": data, "run": str(tmp_path / "run"), "workers": 0}
    given = given_to_fit("detect.training.train", monkeypatch)
    outcome = train_detector(from_dict(DetectorConfig, settings))
    assert (given["validation"].evaluate is not None) == has_objects
    assert given["validation"].best_metric == ("AP" if has_objects else None)
    assert outcome["weights"].name == ("best" if has_objects else "last") + ".safetensors"
    words = "no epoch can be the best by it: the last one is kept"
    assert (words in caplog.text) == ("split val has no objects" in caplog.text) != has_objects
