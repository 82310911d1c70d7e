import re

import pytest
import torch
from helpers.trained_network import assert_same_tensors, randomise, small

import backbones.networks.metadata
from backbones import (
    UserError,
    load_backbone,
    load_weights,
    save_backbone,
    save_weights,
    start_backbone,
)
from backbones.networks.inception import InceptionV3
from backbones.networks.metadata import package_version


@pytest.mark.parametrize(
    "kwargs",
    [
        {"name": "inception_v3_79", "aux": "batch_norm", "dropout": 0.2},
        {"name": "inception_v3_151_table1", "aux": "plain"},
        {"name": "inception_v2", "num_classes": 0},
    ],
)
def test_backbone_round_trip(tmp_path, kwargs):
    model = randomise(small(**kwargs), seed=0).eval()
    names = [f"class {i}" for i in range(model.num_classes)] or None
    path = tmp_path / "b.safetensors"
    training = {"epochs": 3, "data": {"shards": ["https://me:secret@host/a.tar?key=secret"]}}
    save_backbone(path, model, names, metrics={"top1": 0.75}, training=training)
    loaded = load_backbone(path)
    assert not loaded.training
    assert loaded.spec == model.spec
    assert loaded.dropout == kwargs.get("dropout", 0.0)
    x = torch.rand(1, 3, 90, 90)
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    assert_same_tensors(loaded.state_dict(), model.state_dict())
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())

    _, metadata = load_weights(path)
    assert metadata["class_names"] == names
    assert metadata["metrics"] == {"top1": 0.75}
    masked = {"shards": ["https://me:***@host/a.tar?key=***"]}
    assert metadata["training"] == {"epochs": 3, "data": masked}
    assert (metadata["kind"], metadata["variant"]) == ("backbone", kwargs["name"])
    assert metadata["mean"] == metadata["std"] == [0.5] * 3
    assert metadata["input_size"] == model.input_size
    assert metadata["package_version"] == package_version()


@pytest.fixture(scope="module")
def saved_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "b.safetensors"
    save_backbone(path, small(num_classes=2), ["cat", "dog"])
    return path


@pytest.fixture
def saved(saved_file):
    """Weights and metadata of a saved network, to be tampered with."""
    return load_weights(saved_file)


def test_normalisation_and_size_are_the_files(tmp_path, saved):
    state, metadata = saved
    changed = {"mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.3], "input_size": 96}
    save_weights(tmp_path / "b.safetensors", state, metadata | changed)
    model = load_backbone(tmp_path / "b.safetensors")
    spec = model.spec
    assert (spec.mean, spec.std, spec.input_size) == (
        (0.485, 0.456, 0.406),
        (0.2, 0.2, 0.3),
        96,
    )
    assert spec.grids == (44, 21, 10)
    raw = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    mean, std = (torch.tensor(changed[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(model(raw), model((raw / 255 - mean) / std))
    # What is written of it says the same again.
    save_backbone(tmp_path / "again.safetensors", model)
    assert load_backbone(tmp_path / "again.safetensors").spec == spec


@pytest.mark.parametrize(
    ("installed", "wrote", "is_refused"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.9.4", "0.10.0", True),
        ("1.2.0", "2.0.0rc1", True),
        ("0.1.0", "0.1.7", False),
        ("0.2.0", "0.1.9", False),
        ("unknown", "9.0.0", False),
        ("0.1.0", "unknown", False),
        ("0.1.0", None, False),
        ("0.1.0", {"9": 9}, False),
    ],
)
def test_files_of_a_newer_release_are_refused(
    installed, wrote, is_refused, tmp_path, saved, monkeypatch
):
    monkeypatch.setattr(backbones.networks.metadata, "package_version", lambda: installed)
    state, metadata = saved
    path = tmp_path / "b.safetensors"
    save_weights(path, state, metadata | {"package_version": wrote})
    if not is_refused:
        load_backbone(path)
        return
    line = f"{path}: written by lowres-rcnn {wrote}, newer than the installed {installed}: pip"
    with pytest.raises(UserError, match=re.escape(line)):
        load_backbone(path)
    with pytest.raises(UserError, match=re.escape(line)):
        start_backbone("inception_v3_79", path, num_classes=2, width=0.25)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "detector"}, "expected a checkpoint of kind 'backbone', found kind 'detector'"),
        ({"variant": "inception_v3_80"}, "unknown backbone"),
        ({"variant": ["inception_v3"]}, "broken metadata"),
        ({"variant": "inception_v3_table1"}, "weights do not fit the metadata: stem.conv4"),
        ({"width": 0.5}, "weights do not fit the metadata: stem.conv3"),
        ({"width": "wide"}, "broken metadata: width"),
        ({"aux": "plain"}, "weights do not fit the metadata: aux_head.* found nothing"),
        ({"dropout": None}, "broken metadata"),
        ({"num_classes": 3, "class_names": None}, r"fc.weight expected \[3, 512\], found \[2, 512"),
        ({"num_classes": 10**15, "class_names": None}, "do not fit the metadata: fc.weight"),
        ({"num_classes": 10**30, "class_names": None}, "broken metadata"),
        ({"num_classes": "2"}, "broken metadata: num_classes"),
        ({"class_names": ["cat"]}, "1 class names for 2 classes"),
        ({"input_size": 20}, "input_size must be a whole number of at least 21, got 20"),
        ({"mean": [0.5, 0.5]}, "broken metadata"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be positive"),
        ({"std": [0.5, 0.5, float("nan")]}, "std must be positive"),
        ({"mean": [123.7, 116.3, 103.5]}, r"mean must be of values scaled to \[0, 1\]"),
        ({"std": [58.4, 57.1, 57.4]}, r"std must be positive, of values scaled to \[0, 1\]"),
        ({"mean": "grey"}, "broken metadata"),
    ],
    ids=str,
)
def test_tampered_metadata(tmp_path, saved, changed, message):
    state, metadata = saved
    path = tmp_path / "b.safetensors"
    save_weights(path, state, metadata | changed)
    with pytest.raises(UserError, match=message) as error:
        load_backbone(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_lacking_metadata(tmp_path, saved):
    state, metadata = saved
    path = tmp_path / "b.safetensors"
    save_weights(path, state, {n: v for n, v in metadata.items() if n != "width"})
    with pytest.raises(UserError, match="broken metadata: no 'width'"):
        load_backbone(path)
    save_weights(path, state, {})
    with pytest.raises(UserError, match="found a file without a kind"):
        load_backbone(path)


def test_save_backbone_checks_its_arguments(tmp_path):
    model: InceptionV3 = small(num_classes=2)
    with pytest.raises(ValueError, match="got 1 class names for 2 classes"):
        save_backbone(tmp_path / "b.safetensors", model, ["cat"])
    assert not list(tmp_path.iterdir())
