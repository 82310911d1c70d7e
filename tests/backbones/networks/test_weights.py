import copy
import json
import logging
import struct

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from backbones import (
    UserError,
    create_backbone,
    from_timm,
    from_torchvision,
    load_backbone,
    load_weights,
    save_backbone,
    save_weights,
    to_timm,
    to_torchvision,
    warm_start,
)
from backbones.networks.inception import InceptionV3

CLASSES = 10
SMALL = {"num_classes": CLASSES, "width": 0.25}


def small(name="inception_v3_79", **kwargs):
    return create_backbone(name, **(SMALL | kwargs))


def assert_same_tensors(state, expected):
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def randomise(model, seed):
    """Random weights of a size that keeps signals alive, and random running statistics."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = (2 / module.weight[0].numel()) ** 0.5
            module.weight.data.normal_(0, std, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
            module.num_batches_tracked.fill_(7)
    return model


def torchvision_model():
    return torchvision.models.Inception3(
        CLASSES, aux_logits=True, transform_input=False, init_weights=False, dropout=0.0
    )


def timm_model():
    return timm.create_model("inception_v3", num_classes=CLASSES, aux_logits=True)


REFERENCES = {
    "torchvision": (torchvision_model, from_torchvision, to_torchvision),
    "timm": (timm_model, from_timm, to_timm),
}


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request):
    """(their network, ours, map from their names, map to them)."""
    make, from_theirs, to_theirs = REFERENCES[request.param]
    ours = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm")
    return make(), ours, from_theirs, to_theirs


def main_logits(model, x):
    """timm's network returns its auxiliary logits in evaluation too."""
    logits = model.eval()(x)
    return logits[0] if isinstance(logits, tuple) else logits


@pytest.mark.parametrize("way", ["from", "to"])
def test_same_logits(reference, way):
    theirs, ours, from_theirs, to_theirs = reference
    if way == "from":
        ours.load_state_dict(from_theirs(randomise(theirs, seed=0).state_dict()))
    else:
        theirs.load_state_dict(to_theirs(randomise(ours, seed=1).state_dict()))
    x = torch.rand(1, 3, 299, 305, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        expected = main_logits(theirs, x)
        assert expected.std() > 0.01, "a constant output would prove nothing"
        torch.testing.assert_close(main_logits(ours, x), expected, atol=1e-4, rtol=0)


def test_same_gradients(reference):
    theirs, ours, from_theirs, _ = reference
    ours.load_state_dict(from_theirs(randomise(theirs, seed=0).state_dict()))
    # Doubles, as batches of two make what comes before a normalisation sensitive to rounding.
    theirs, ours = copy.deepcopy(theirs).double(), copy.deepcopy(ours).double()
    # The smallest image and batch that the auxiliary head takes in training.
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    target = torch.tensor([1, 8])
    gradients = []
    for model in (theirs.train(), ours.train()):
        model.zero_grad()
        logits, aux_logits = model(x)
        loss = nn.functional.cross_entropy(logits, target)
        (loss + 0.3 * nn.functional.cross_entropy(aux_logits, target)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    renamed = from_theirs(gradients[0])
    assert renamed.keys() == gradients[1].keys()
    for name, expected in renamed.items():
        error = (gradients[1][name] - expected).norm() / (expected.norm() + 1e-6)
        assert error < 1e-8, name
    counters = {int(b) for n, b in ours.named_buffers() if n.endswith("num_batches_tracked")}
    assert counters == {8}


def test_maps_are_each_others_inverse():
    state = torchvision_model().state_dict()
    ours = from_torchvision(state)
    with torch.device("meta"):
        own = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm").state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in own.items()}
    back = to_torchvision(ours)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_old_files_without_counters():
    state = torchvision_model().state_dict()
    without = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    completed = from_torchvision(without)
    assert completed.keys() == from_torchvision(state).keys()
    model = create_backbone("inception_v3", num_classes=CLASSES, aux="batch_norm")
    body = {n: t for n, t in completed.items() if not n.endswith("num_batches_tracked")}
    assert warm_start(model, body) == []


def test_map_refuses_strange_names():
    with pytest.raises(UserError, match=r"cannot rename 'layer1.0.conv1.weight'"):
        from_torchvision({"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"cannot rename 'stem.conv6.conv.weight'"):
        to_torchvision({"stem.conv6.conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("inception_v3", "inception_v3_79"),
        ("inception_v3_79", "inception_v3_151"),
        ("inception_v3_79_naive_table1", "inception_v3_79_table1"),
    ],
)
def test_warm_start_across_receptive_fields(source, target):
    given = randomise(small(source, aux="batch_norm"), seed=0).state_dict()
    model = small(target, aux="batch_norm")
    assert warm_start(model, given) == []
    assert_same_tensors(model.state_dict(), given)


def test_warm_start_with_other_classes_renews_the_last_layers_only(caplog):
    given = randomise(small(aux="plain"), seed=0).state_dict()
    model = randomise(small(num_classes=4, aux="plain"), seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "backbones.networks.weights"):
        fresh = warm_start(model, given)
    assert fresh == ["fc.weight", "fc.bias", "aux_head.fc.weight", "aux_head.fc.bias"]
    assert "aux_head.fc.bias" in caplog.text
    after = model.state_dict()
    assert all(torch.equal(after[n], given[n]) for n in given if n not in fresh)
    # Fresh, not what was there: a trained classifier means other classes.
    assert not torch.equal(after["fc.weight"], before["fc.weight"])
    assert 0 < after["fc.weight"].abs().max() <= 0.02
    assert 0 < after["aux_head.fc.weight"].abs().max() <= 0.002


def test_warm_start_of_a_network_without_heads():
    given = randomise(small(aux="batch_norm"), seed=0).state_dict()
    model = small(num_classes=0)
    assert warm_start(model, given) == []
    body = {n: t for n, t in given.items() if not n.startswith(("fc.", "aux_head."))}
    assert_same_tensors(model.state_dict(), body)


def test_warm_start_from_weights_without_heads():
    given = randomise(small(num_classes=0), seed=0).state_dict()
    model = randomise(small(aux="batch_norm"), seed=1)
    fresh = warm_start(model, given)
    heads = [n for n in model.state_dict() if n.startswith(("fc.", "aux_head."))]
    assert fresh == heads
    assert model.aux_head.conv0.bn.running_mean.abs().max() == 0
    assert model.aux_head.conv0.bn.num_batches_tracked == 0


def test_warm_start_from_torchvision():
    model = create_backbone("inception_v3_79", num_classes=3)
    fresh = warm_start(model, from_torchvision(torchvision_model().state_dict()))
    assert fresh == ["fc.weight", "fc.bias"]


def test_warm_start_keeps_precision():
    model = small().double()
    warm_start(model, small().state_dict())
    assert model.fc.weight.dtype == torch.double


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: small(width=0.5).state_dict(),
            r"stem.conv3.conv.weight expected \[16, 16, 3, 3\], found \[32, 16, 3, 3\]; .* more",
        ),
        (
            lambda: small("inception_v3_79_table1").state_dict(),
            r"stem.conv4.conv.weight expected \[16, 16, 1, 1\], found \[16, 16, 3, 3\]",
        ),
        (
            lambda: small(aux="plain").state_dict(),
            "aux_head.conv1.bn.weight expected",
        ),
        (
            lambda: {n: t for n, t in small().state_dict().items() if n != "stem.conv2.bn.bias"},
            r"stem.conv2.bn.bias expected \[16\], found nothing$",
        ),
        (
            lambda: small().state_dict() | {"extra": torch.zeros(2)},
            r"extra expected nothing, found \[2\]$",
        ),
        (
            lambda: small().state_dict() | {"fc.bias": torch.zeros(10, dtype=torch.int64)},
            r"fc.bias expected \[10\], found \[10\] torch.int64$",
        ),
        (
            lambda: small().state_dict() | {"fc.weight": torch.zeros(10, 7)},
            r"fc.weight expected \[10, 512\], found \[10, 7\]$",
        ),
    ],
    ids=["width", "layout", "aux kind", "missing", "surplus", "integers", "features"],
)
def test_warm_start_refuses_the_rest(given, message):
    torch.manual_seed(0)
    model = small(aux="batch_norm")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        warm_start(model, given())
    assert_same_tensors(model.state_dict(), before)


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
    assert loaded_metadata == metadata
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


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"this is a folder: name the file in it \(none\)"):
        load_weights(tmp_path)
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(UserError, match=r"name the file in it \(last.safetensors\)"):
        load_weights(tmp_path)


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
    save_backbone(path, model, names, figures={"top1": 0.75})
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
    assert metadata["figures"] == {"top1": 0.75}
    assert (metadata["kind"], metadata["variant"]) == ("backbone", kwargs["name"])
    assert metadata["mean"] == metadata["std"] == [0.5] * 3
    assert metadata["input_size"] == model.input_size
    assert metadata["package_version"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Weights and metadata of a saved network, to be tampered with."""
    path = tmp_path_factory.mktemp("saved") / "b.safetensors"
    save_backbone(path, small(num_classes=2), ["cat", "dog"])
    return load_weights(path)


def test_normalisation_and_size_are_the_files(tmp_path, saved):
    state, metadata = saved
    changed = {"mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.3], "input_size": 96}
    save_weights(tmp_path / "b.safetensors", state, metadata | changed)
    spec = load_backbone(tmp_path / "b.safetensors").spec
    assert (spec.mean, spec.std, spec.input_size) == (
        (0.485, 0.456, 0.406),
        (0.2, 0.2, 0.3),
        96,
    )
    assert spec.grids == (44, 21, 10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "detector"}, "expected a backbone .* found kind 'detector'"),
        ({"variant": "inception_v3_80"}, "unknown backbone"),
        ({"variant": ["inception_v3"]}, "broken metadata"),
        ({"variant": "inception_v3_table1"}, "weights do not fit the metadata: stem.conv4"),
        ({"width": 0.5}, "weights do not fit the metadata: stem.conv3"),
        ({"width": "wide"}, "broken metadata: width"),
        ({"aux": "plain"}, "weights do not fit the metadata: aux_head.* found nothing"),
        ({"dropout": None}, "broken metadata"),
        ({"num_classes": 3, "class_names": None}, r"fc.weight expected \[3, 512\], found \[2, 512"),
        ({"num_classes": 10**15, "class_names": None}, "do not fit|broken metadata"),
        ({"num_classes": 10**30, "class_names": None}, "broken metadata"),
        ({"num_classes": "2"}, "broken metadata: num_classes"),
        ({"class_names": ["cat"]}, "1 class names for 2 classes"),
        ({"input_size": 20}, "input_size must be at least 21"),
        ({"mean": [0.5, 0.5]}, "broken metadata"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be positive"),
        ({"std": [0.5, 0.5, float("nan")]}, "std must be finite"),
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
    with pytest.raises(ValueError, match=r"metadata keys \['width'\]"):
        save_backbone(tmp_path / "b.safetensors", model, width=2)
    assert not list(tmp_path.iterdir())
