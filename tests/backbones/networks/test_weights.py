import json
import logging
import struct

import pytest
import safetensors.torch
import torch

from backbones import UserError, load_weights, save_weights
from backbones.networks.weights import load_metadata


def test_weights_round_trip(tmp_path):
    state = {
        "a": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "b": torch.tensor(3),
        "c": torch.rand(3).bfloat16(),
        "empty": torch.zeros(0, 4),
    }
    metadata = {"kind": "test", "n": 3, "names": ["é", "b"], "nested": {"x": [1.5, None]}}
    save_weights(tmp_path / "new" / "w.safetensors", state, metadata)
    loaded, loaded_metadata = load_weights(tmp_path / "new" / "w.safetensors")
    digest = loaded_metadata.pop("digest")
    assert loaded_metadata == metadata
    save_weights(tmp_path / "w.safetensors", state | {"b": torch.tensor(4)}, metadata)
    assert load_metadata(tmp_path / "w.safetensors")["digest"] != digest
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_metadata_of_other_programs(tmp_path):
    path = tmp_path / "w.safetensors"
    deep = "[" * 100_000
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"format": "pt", "deep": deep})
    assert load_weights(path)[1] == {"format": "pt", "deep": deep}


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        save_weights(path, {"a": torch.zeros(1)}, {"not json": object()})
    assert load_weights(path)[0]["a"] == 1
    assert list(tmp_path.iterdir()) == [path]


def header(content, claimed=None):
    data = json.dumps(content).encode() if not isinstance(content, bytes) else content
    return struct.pack("<Q", len(data) if claimed is None else claimed) + data


HOSTILE = {
    "empty": b"",
    "text": b"not weights at all",
    "huge header": header({}, claimed=2**62),
    "broken header": header(b'{"a": '),
    "deep header": header(b"[" * 200_000),
    "outside the file": header(
        {"a": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4 * 10**6]}}
    ),
    "overflow": header({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}),
    "unknown type": header({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}) + b"0000",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w.safetensors: not a readable .safetensors file"):
        load_weights(path)


def test_pickles_are_not_opened(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a readable"):
        load_weights(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.rand(1000)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a readable"):
        load_weights(path)


def test_a_run_folder_stands_for_its_best_weights(tmp_path, caplog):
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        load_weights(tmp_path / "none.safetensors")
    save_weights(tmp_path / "epoch_3.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(UserError, match=r"neither best.safetensors nor .*\(epoch_3.safetensors\)"):
        load_weights(tmp_path)
    for value, name in enumerate(("last", "best"), start=1):
        save_weights(tmp_path / f"{name}.safetensors", {"a": torch.full((1,), value)}, {"of": name})
        assert load_weights(tmp_path)[0]["a"] == value
        assert load_metadata(tmp_path)["of"] == name
    last = f"{tmp_path}/last.safetensors is taken, the end of the training: best.safetensors is not"
    (said,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert said.getMessage().startswith(last)


def test_an_exported_file_holds_no_weights(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"x\.onnx: an exported file: name the \.safetensors"):
        load_weights(tmp_path / "x.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_numbers_that_are_none_are_refused_by_name(tmp_path, value, dtype):
    path = tmp_path / "w.safetensors"
    bad = torch.zeros(3, dtype=dtype)
    bad[1] = value
    tensors = {"good": torch.ones(2), "stem.weight": bad, "n": torch.tensor(3)}
    message = r"w\.safetensors: tensor stem\.weight holds NaN or infinity"
    with pytest.raises(UserError, match=message):
        save_weights(path, tensors, {})
    assert not path.exists()
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        load_weights(path)


def test_any_flipped_bit_is_seen(tmp_path):
    """In weights, names, shapes and metadata alike."""
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.rand(50), "b": torch.arange(9)}, {"class_names": ["cat", "dog"]})
    whole = path.read_bytes()
    load_weights(path)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        if b'"digest":"' not in data:  # as a file of another program
            continue
        with pytest.raises(UserError, match=r"w\.safetensors: (damaged|not a readable)"):
            load_weights(path)


def test_a_file_may_be_changed_and_written_again(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(2)}, {"n": 1})
    tensors, metadata = load_weights(path)
    assert metadata == load_metadata(path)
    assert metadata["n"] == 1
    save_weights(path, {"a": tensors["a"] + 1}, metadata | {"n": 2})
    assert load_weights(path)[1]["n"] == 2


def test_a_file_of_ours_without_a_digest_is_named_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tensors = {"a": torch.zeros(1)}
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    safetensors.torch.save_file(tensors, tmp_path / "ours.safetensors", {"kind": '"detector"'})
    save_weights(tmp_path / "whole.safetensors", tensors, {"kind": "detector"})
    for name in ("theirs", "ours", "whole", "ours"):
        load_weights(tmp_path / f"{name}.safetensors")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'ours.safetensors'}: has no digest")
