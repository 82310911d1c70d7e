import copy
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from helpers.trained_network import images, trained

from backbones import UserError, save_backbone
from backbones.deployment import openvino
from backbones.deployment.openvino import convert, load_openvino, quantize


@pytest.fixture(scope="module")
def model():
    return trained("inception_v3_79_naive", num_classes=10)


@pytest.fixture(scope="module")
def quantized(model):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    torch.manual_seed(1)
    return quantize(model, [images(model, 8)[0] for _ in range(4)])


@pytest.fixture(scope="module")
def converted(model):
    """In fp32. Copies are compiled anew, as `convert` does it after seconds of tracing."""
    pytest.importorskip("openvino")
    return convert(model, "fp32")


@torch.inference_mode()
def test_stands_in_for_the_network(model, quantized):
    raw, x = images(model, 16)
    logits = model(x)
    found = quantized(x)
    assert found.dtype == torch.float32
    # Eight bits: near, and not equal, or nothing was quantised.
    error = (found - logits).norm() / logits.norm()
    assert 1e-3 < error < 0.1
    torch.testing.assert_close(quantized(raw), found, rtol=0, atol=0.05)
    assert quantized(x[:3]).shape == (3, 10)
    for name in ("spec", "input_size", "num_classes", "num_features"):
        assert getattr(quantized, name) == getattr(model, name)


@torch.inference_mode()
@pytest.mark.parametrize(("precision", "low", "high"), [("fp32", 0, 1e-4), ("bf16", 1e-4, 0.02)])
def test_converted(model, converted, precision, low, high, tmp_path):
    raw, x = images(model, 5)
    found = converted if precision == "fp32" else convert(model, precision)
    error = (found(x) - model(x)).norm() / model(x).norm()
    assert low <= error < high
    torch.testing.assert_close(found(raw), found(x), rtol=0, atol=0.05)
    found.save(tmp_path / "net.safetensors")
    loaded = load_openvino(tmp_path / "net.safetensors")
    assert loaded.precision == precision
    for twin in (loaded, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(twin(x), found(x))
    assert found(x[:0]).shape == model(x[:0]).shape == (0, 10)


@torch.inference_mode()
def test_converted_for_another_size(model):
    pytest.importorskip("openvino")
    x = images(model, 2)[1][:, :, :77, :77]
    found = convert(model, "fp32", image_size=77)
    assert found.input_size == 77
    torch.testing.assert_close(found(x), model(x), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="at least 75x75 pixels, got 60x60"):
        convert(model, "fp32", image_size=60)


@torch.inference_mode()
def test_saved_and_loaded(model, quantized, tmp_path):
    quantized.save(tmp_path / "best.openvino.safetensors")
    assert (tmp_path / "best.openvino.safetensors").stat().st_size < 4_000_000
    loaded = load_openvino(tmp_path / "best.openvino.safetensors")
    raw, _ = images(model, 3)
    torch.testing.assert_close(loaded(raw), quantized(raw))
    assert loaded.spec == quantized.spec


def test_files_that_are_none(model, quantized, tmp_path):
    path = tmp_path / "net.safetensors"
    save_backbone(path, model)
    with pytest.raises(UserError, match="of kind 'openvino', found kind 'backbone'"):
        load_openvino(path)
    broken = type(quantized)(quantized.graph, quantized.weights, quantized.metadata)
    broken.graph = broken.graph[:1000]
    broken.save(path)
    with pytest.raises(UserError, match=re.escape(f"{path}: broken network of OpenVINO")):
        load_openvino(path)
    broken.metadata = {key: value for key, value in broken.metadata.items() if key != "mean"}
    broken.save(path)
    with pytest.raises(UserError, match="broken network of OpenVINO: no 'mean'"):
        load_openvino(path)


def test_wrong_use(model, quantized):
    with pytest.raises(ValueError, match=r"made for \[N, 3, 79, 79\], got \[1, 3, 90, 90\]"):
        quantized(torch.zeros(1, 3, 90, 90))
    with pytest.raises(ValueError, match="cannot be trained"):
        quantized.train()
    with pytest.raises(UserError, match="calibration_images is empty"):
        quantize(model, [])
    with pytest.raises(ValueError, match="squares of one size"):
        quantize(model, [torch.zeros(1, 3, 79, 80)])


def test_a_missing_extra_names_the_command(model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"nncf .*: pip install 'lowres-rcnn\[openvino\]'"):
        quantize(model, [])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"this needs openvino .*\[openvino\]"):
        load_openvino(tmp_path / "none.safetensors")


@torch.inference_mode()
def test_all_networks_share_one_object_of_openvino(model, converted, monkeypatch):
    monkeypatch.setattr("openvino.Core", None)  # another one cannot be made
    assert copy.deepcopy(converted)(images(model, 1)[1]).shape == (1, 10)


@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("kind", ["int8", "fp32"])
def test_several_threads_at_once(model, quantized, converted, kind):
    """Each gets the answers to its own images, whether they share a stream or have their own."""
    torch.set_num_threads(1 if kind == "int8" else 4)
    network = quantized if kind == "int8" else copy.deepcopy(converted)
    batches = [images(model)[0] for _ in range(12)]
    torch.set_num_threads(1)
    expected = [network(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: [network(batch) for _ in range(3)], batches))
    for answers, one in zip(found, expected, strict=True):
        for logits in answers:
            torch.testing.assert_close(logits, one)
    assert not torch.allclose(expected[0], expected[1])


@pytest.mark.usefixtures("threads_of_torch")
def test_the_threads_of_the_caller(model, converted, monkeypatch):
    """Made for four threads, it serves four callers of one thread at once, or two of two."""
    asked, core = [], openvino.core()

    def compile_model(network, device, settings):
        asked.append((int(settings["NUM_STREAMS"]), int(settings["INFERENCE_NUM_THREADS"])))
        return core.compile_model(network, device, settings)

    recording = SimpleNamespace(read_model=core.read_model, compile_model=compile_model)
    monkeypatch.setattr(openvino, "core", lambda: recording)
    torch.set_num_threads(4)
    network = copy.deepcopy(converted)
    for threads in (4, 2, 1, 6, 2):
        torch.set_num_threads(threads)
        network(images(model)[0])
    assert asked == [(1, 4), (2, 4), (4, 4), (1, 6)]
