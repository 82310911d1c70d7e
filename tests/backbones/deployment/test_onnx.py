import json
import sys

import pytest
import torch
from helpers.trained_network import images, normalised_otherwise, trained

import backbones.deployment.onnx
from backbones import UserError, create_backbone
from backbones.common.packages import require
from backbones.deployment.onnx import export_backbone, export_onnx
from backbones.networks.metadata import package_version


def session(path):
    return pytest.importorskip("onnxruntime").InferenceSession(path)


@pytest.fixture
def _extra():
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)


@pytest.mark.usefixtures("_extra")
@pytest.mark.parametrize(
    "name",
    # What the second has is in the networks of the tool's tests as well.
    ["inception_v2", pytest.param("inception_v3_151_table1", marks=pytest.mark.large)],
)
def test_runs_without_pytorch(name, tmp_path):
    model = trained(normalised_otherwise(name), num_classes=3)
    difference = export_backbone(tmp_path / "net.onnx", model, ["a", "b", "c"])
    assert difference < 1e-4
    network = session(tmp_path / "net.onnx")
    metadata = network.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "variant": name,
        "width": 0.25,
        "input_size": model.input_size,
        "mean": [0.2, 0.5, 0.7],
        "std": [0.3, 0.25, 0.2],
        "package_version": package_version(),
        "class_names": ["a", "b", "c"],
    }
    _, x = images(model, 4)
    (logits,) = network.run(["logits"], {"images": x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("_extra")
def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    network, other = torch.nn.Conv2d(3, 2, 3).eval(), torch.nn.Conv2d(3, 2, 3).eval()
    assert export_onnx(path, network, 8, ("maps",), {}) < 1e-4
    before = path.read_bytes()
    to_onnx = backbones.deployment.onnx._to_onnx
    monkeypatch.setattr(
        backbones.deployment.onnx, "_to_onnx", lambda network, *rest: to_onnx(other, *rest)
    )
    with pytest.raises(RuntimeError, match=r"other maps: off by .* nothing was written"):
        export_onnx(path, network, 8, ("maps",), {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_a_missing_extra_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model = create_backbone("inception_v3_79", num_classes=0, width=0.25).eval()
    with pytest.raises(UserError, match=r"onnxscript .*: pip install 'lowres-rcnn\[export\]'"):
        export_backbone(tmp_path / "net.onnx", model)
    assert not list(tmp_path.iterdir())
    require("export", "json", "csv")
