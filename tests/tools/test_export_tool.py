import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.full_disk import full_disk
from helpers.tool_runs import error_of, run
from helpers.trained_network import trained
from helpers.untrained_detector import save_untrained

from backbones import save_backbone
from backbones.common.errors import DiskError, UserError
from backbones.common.images import write_image
from backbones.deployment.onnx import to_onnx
from backbones.deployment.openvino import core
from detect import load_detector
from detect.commands import export, infer, propose
from detect.commands.export import check_replaceable
from detect.deployment import exported as exported_files
from detect.deployment.export import save_openvino
from detect.deployment.exported import OUTPUTS, RT_INFO
from detect.deployment.seal import seal_onnx

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
    check_replaceable(tmp_path / "best.onnx")
    (tmp_path / "best.onnx").write_bytes(b"mine")
    line = error_of(export, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert f"{tmp_path}/best.onnx: is there already, and export did not write it" in line
    assert (tmp_path / "best.onnx").read_bytes() == b"mine"


def test_files_for_openvino_replace_earlier_ones_and_none_of_others(exported, tmp_path):
    pytest.importorskip("openvino")
    model, path = core().read_model(exported / "detector.onnx"), tmp_path / "x.xml"
    path.with_suffix(".bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"x\.bin: is there already, and export did not write it"):
        check_replaceable(path)
    path.with_suffix(".bin").unlink()
    model.set_rt_info(json.dumps("x"), [RT_INFO, "variant"])
    save_openvino(path, model)
    before = [path.read_bytes(), path.with_suffix(".bin").read_bytes()]
    check_replaceable(path)
    with (
        full_disk(100),
        pytest.raises(DiskError, match=r"x\.xml: cannot be written: (is there|File too large)"),
    ):
        save_openvino(path, model)
    assert [path.read_bytes(), path.with_suffix(".bin").read_bytes()] == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.bin", "x.xml"]


def test_commands_that_need_weights_refuse_a_file_of_export(
    exported, tmp_path, monkeypatch, capsys
):
    given = ("--weights", str(exported / "detector.onnx"), "--output", str(tmp_path / "x.onnx"))
    line = error_of(export, *given, monkeypatch=monkeypatch, capsys=capsys)
    assert "detector.onnx: an exported file: name the .safetensors that it was made" in line
    given = (*given[:3], str(tmp_path / "x.json"))
    line = error_of(propose, *given, monkeypatch=monkeypatch, capsys=capsys)
    assert "detector.onnx: an exported file does not tell its proposals: name the .saf" in line


def test_a_secret_in_the_address_of_weights_is_not_shown(tmp_path, monkeypatch, capsys):
    address = "https://me:hidden@host/x.safetensors?token=hidden"
    for tool in (infer, export, propose):
        more = ("--inputs", address) if tool is infer else ("--output", str(tmp_path / "x.onnx"))
        line = error_of(tool, "--weights", address, *more, monkeypatch=monkeypatch, capsys=capsys)
        assert "https://me:***@host/x.safetensors?token=***: no such file: expected" in line


def test_a_folder_that_is_named_like_a_picture_is_one_line(tmp_path, monkeypatch, capsys):
    write_image(tmp_path / "a.png", torch.zeros(3, 64, 64, dtype=torch.uint8))
    given = ("--weights", "none", "--inputs", str(tmp_path / "a.png"))
    output = ("--output", str(tmp_path / "g/a.jpg"))
    line = error_of(infer, *given, *output, monkeypatch=monkeypatch, capsys=capsys)
    assert "g/a.jpg: cannot write into this folder: named like a file: name another" in line
    assert not (tmp_path / "g").exists()


class _Fixed(torch.nn.Module):
    """Two boxes, whatever the image: a file like those of a detector, made in a moment."""

    def forward(self, image):
        size = torch.zeros_like(image[:1, :1, 0]).float().flatten()[:, None]
        boxes = torch.tensor([[1.5, 2, 20, 30], [5, 5, 9, 9]]) + size
        return (
            boxes,
            torch.tensor([2, 1]) + size[:, 0].long(),
            torch.tensor([0.9, 0.3]) + size[:, 0],
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    dynamic = torch.export.Dim.DYNAMIC
    image = torch.zeros(8, 9, 3, dtype=torch.uint8)
    program = torch.export.export(_Fixed(), (image,), dynamic_shapes=({0: dynamic, 1: dynamic},))
    metadata = {"kind": "detector", "class_names": ["a", "b"], "category_ids": [3, 7]}
    metadata |= {"score_thresh": 0.2, "precision": "fp32", "package_version": "0.1.0"}
    data = to_onnx(program, ["image"], OUTPUTS, metadata, {})
    (folder / "detector.onnx").write_bytes(seal_onnx(data))
    write_image(folder / "photo.png", torch.zeros(3, 40, 50, dtype=torch.uint8))
    return folder


def test_the_script_of_the_documentation_needs_nothing_of_ours(exported):
    text = Path("docs/deploy.md").read_text()
    (script,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "sys.argv[1]" in block
    )
    hidden = "import sys\nfor name in ('torch', 'detect', 'backbones', 'cv2'):\n"
    hidden += "    sys.modules[name] = None\n"
    command = [sys.executable, "-c", hidden + script, "detector.onnx", "photo.png"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("b 0.90 1.5 2.0 20.0 30.0\n", "")


def test_infer_takes_an_exported_file(exported, tmp_path, monkeypatch, capsys):
    arguments = ["--weights", str(exported / "detector.onnx"), "--output", str(tmp_path)]
    arguments += ["--inputs", str(exported / "photo.png"), "--overwrite"]
    assert run(infer, *arguments, "--score_thresh", "0.25", monkeypatch=monkeypatch) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(one["category_id"], one["bbox"]) for one in found] == [
        (7, [1.5, 2, 18.5, 28]),
        (3, [5, 5, 4, 4]),
    ]
    for option, words in {
        "--precision int8": "has its precision and engine",
        "--engine openvino": "has its precision and engine",
        "--model.rcnn.nms_thresh 0.2": "keeps its settings: remove model",
        "--score_thresh 0.1": "export with --model.rcnn.score_thresh",
    }.items():
        line = error_of(infer, *arguments, *option.split(), monkeypatch=monkeypatch, capsys=capsys)
        assert words in line
    with pytest.raises(UserError, match="runs on the CPU: remove device"):
        load_detector(exported / "detector.onnx", "cuda")


def test_a_file_of_something_else_is_one_line(exported, tmp_path, monkeypatch, capsys):
    for name in ("a.onnx", "a.xml"):
        (tmp_path / name).write_bytes(b"nothing")
        arguments = ("--weights", str(tmp_path / name), "--inputs", str(exported / "photo.png"))
        line = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert name in line
        assert "cannot read this file" in line


@pytest.mark.soak
def test_a_whole_detector(tmp_path, monkeypatch):
    # A minute of a core, which torch takes to follow the graph.
    weights = save_untrained(tmp_path / "x.safetensors", 2)
    arguments = ("--weights", str(weights), "--output", str(tmp_path / "x.onnx"))
    assert run(export, *arguments, monkeypatch=monkeypatch) == 0
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    image = image.repeat_interleave(20, 1).repeat_interleave(15, 2)
    ours, theirs = (
        load_detector(path, "cpu")(image, score_thresh=0.0)
        for path in (weights, tmp_path / "x.onnx")
    )
    assert len(ours) == len(theirs) > 0
    assert theirs.names
    nearest = torch.cdist(ours["boxes"], theirs["boxes"]).min(dim=1).values
    assert nearest.max() < 2


@pytest.mark.parametrize(
    ("output", "words"),
    [("net.pt", "output must end in .onnx or .xml"), ("net.onnx", "no such file")],
)
def test_mistakes_are_one_line(output, words, tmp_path, monkeypatch, capsys):
    arguments = ("--weights", str(tmp_path / "none.safetensors"), "--output", output)
    assert words in error_of(export, *arguments, monkeypatch=monkeypatch, capsys=capsys)


GOOD = {"kind": "detector", "class_names": ["a", "b"], "category_ids": [3, 7]}
GOOD |= {"score_thresh": 0.2, "precision": "fp32"}


def write_constant(path, box, label, score, texts) -> None:
    """A graph that finds the same in each image."""
    import onnx

    values = (np.float32([box]), np.array([label]), np.float32([score]))
    constants = [onnx.numpy_helper.from_array(value) for value in values]
    nodes = [
        onnx.helper.make_node("Constant", [], [name], value=value)
        for name, value in zip(OUTPUTS, constants, strict=True)
    ]
    of_image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, [None, None, 3])
    of_outputs = [
        onnx.helper.make_tensor_value_info(name, value.data_type, value.dims)
        for name, value in zip(OUTPUTS, constants, strict=True)
    ]
    graph = onnx.helper.make_graph(nodes, "g", [of_image], of_outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("values", "changed", "message"),
    [
        (([0, 0, 9, 9], 3, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, 9], 0, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, np.nan], 1, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, 9], 1, np.nan), {}, "are no detections of 2 classes"),
        (([0, 0, 9], 1, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, 9], 1, 1.1), {}, "x.onnx: what its graph gives are no detections of 2"),
        (([0, 0, 60, 9], 1, 0.9), {}, "no detections of 2 classes in an image of 50x40 pixels"),
        (([0, -9, 5, 9], 1, 0.9), {}, "are no detections of 2 classes"),
        (([9, 0, 5, 9], 1, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, 9], 0.5, 0.9), {}, "are no detections of 2 classes"),
        (([0, 0, 9, 9], True, 0.9), {}, "are no detections of 2 classes"),
        (None, {"class_names": ["a"]}, "1 class names, 2 category ids"),
        (None, {"class_names": ["a", "a"]}, "stands twice"),
        (None, {"class_names": ["a", "b\n"]}, "cannot be printed"),
        (
            None,
            {"class_names": ["a", " "]},
            "x.onnx: broken metadata: class_names: expected the name",
        ),
        (
            None,
            {"metrics": {"score_thresh": "0"}},
            "metrics.score_thresh must be in [0, 1], got '0'",
        ),
        (None, {"metrics": {"score_thresh": -1}}, "x.onnx: broken metadata: metrics.score_thresh"),
        (None, {"class_names": "ab"}, "class_names must be a list"),
        (None, {"score_thresh": np.nan}, "score_thresh must be in [0, 1], got nan"),
        (None, {"metrics": [1]}, "metrics must be a mapping"),
        (None, {"training": [1]}, "training must be a mapping"),
        (None, {"kind": 5}, "expected a detector"),
        (None, "{", "broken metadata"),
    ],
)
def test_a_damaged_file_is_one_line(
    values, changed, message, exported, tmp_path, monkeypatch, capsys
):
    texts = dict.fromkeys(GOOD, changed)
    if isinstance(changed, dict):
        texts = {key: json.dumps(value) for key, value in (GOOD | changed).items()}
    write_constant(tmp_path / "x.onnx", *(values or ([0, 0, 9, 9], 1, 0.9)), texts)
    words = ("--weights", str(tmp_path / "x.onnx"), "--inputs", str(exported / "photo.png"))
    words += ("--output", str(tmp_path / "out"))
    assert message in error_of(infer, *words, monkeypatch=monkeypatch, capsys=capsys)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    texts = {key: json.dumps(value) for key, value in GOOD.items()}
    write_constant(tmp_path / "x.onnx", [0, 0, 9, 9], 1, 0.9, texts)
    before = load_detector(tmp_path / "x.onnx", "cpu").metadata["digest"]
    read = exported_files._read_onnx

    def read_and_replace(path):
        found = read(path)
        write_constant(path, [0, 0, 9, 9], 1, 0.8, texts)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(exported_files, "_read_onnx", read_and_replace)
        with pytest.raises(UserError, match=r"x\.onnx: was replaced while it was read: try again"):
            load_detector(tmp_path / "x.onnx", "cpu")
    assert load_detector(tmp_path / "x.onnx", "cpu").metadata["digest"] != before


@pytest.mark.parametrize("name", ["pipe.onnx", "pipe.xml"])
def test_a_pipe_is_not_waited_for(name, exported, tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / name)
    words = ("--weights", str(tmp_path / name), "--inputs", str(exported / "photo.png"))
    error = error_of(infer, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert f"{name}: cannot be read: is a pipe" in error
