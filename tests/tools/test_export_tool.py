import json

import numpy as np
import pytest
import torch
from helpers.tool_runs import error_of, run
from helpers.trained_network import normalised_otherwise, trained

from backbones import save_backbone
from backbones.networks.normalization import normalize
from detect import RCNN, RCNNConfig, load_detector, save_detector
from detect.commands import export
from detect.config import ModelConfig
from detect.proposals import GridProposer
from detect.proposals.grid import GridConfig

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def test_backbone(tmp_path, monkeypatch, capsys):
    save_backbone(
        tmp_path / "best.safetensors", trained("inception_v3_79", num_classes=2), ["a", "b"]
    )
    # A run folder stands for its best weights, and has the file beside them.
    arguments = ("--weights", str(tmp_path))
    assert run(export, *arguments, monkeypatch=monkeypatch) == 0
    assert "best.onnx: ONNX Runtime's outputs differ by at most" in capsys.readouterr().out
    network = onnxruntime.InferenceSession(tmp_path / "best.onnx")
    metadata = network.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["a", "b"]


def test_crop_network_of_a_detector(tmp_path, monkeypatch):
    rcnn = RCNNConfig(crop_size=64, context=0.1)
    config = ModelConfig(width=0.25, proposer="grid", rcnn=rcnn)
    backbone = trained(normalised_otherwise("inception_v3_79"))
    model = RCNN(backbone, GridProposer(GridConfig()), 3, config.rcnn)
    torch.nn.init.normal_(model.bbox_pred.weight, std=0.1)
    weights, output = tmp_path / "best.safetensors", tmp_path / "crops.onnx"
    save_detector(weights, model, config, ["a", "b", "c"], [1, 2, 3], {})
    arguments = ("--weights", str(weights), "--output", str(output))
    assert run(export, *arguments, monkeypatch=monkeypatch) == 0

    network = onnxruntime.InferenceSession(output)
    metadata = {k: json.loads(v) for k, v in network.get_modelmeta().custom_metadata_map.items()}
    assert metadata["class_names"] == ["a", "b", "c"]
    assert (metadata["input_size"], metadata["context"]) == (64, 0.1)
    assert metadata["delta_std"] == [0.1, 0.1, 0.2, 0.2]

    model = load_detector(weights, "cpu").model
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    boxes = torch.tensor([[5.0, 5, 60, 70], [30, 10, 90, 90], [0, 0, 120, 90]])
    with torch.inference_mode():
        crops = model.crop([image], [boxes])
        expected = model._heads(crops)
    mean, std = metadata["mean"], metadata["std"]
    assert (mean, std) == ([0.2, 0.5, 0.7], [0.3, 0.25, 0.2])
    images = np.ascontiguousarray(normalize(crops, mean, std))
    found = network.run(["logits", "deltas"], {"images": images})
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("output", "words"), [("net.pt", "output must end in .onnx"), ("net.onnx", "no such file")]
)
def test_mistakes_are_one_line(output, words, tmp_path, monkeypatch, capsys):
    arguments = ("--weights", str(tmp_path / "none.safetensors"), "--output", output)
    assert words in error_of(export, *arguments, monkeypatch=monkeypatch, capsys=capsys)
