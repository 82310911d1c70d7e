import logging
import re
from dataclasses import replace

import pytest
import torch
from helpers.trained_network import assert_same_tensors, normalised_otherwise, randomise, small

from backbones import (
    SPECS,
    InceptionV3,
    UserError,
    save_backbone,
    save_weights,
    start_backbone,
    warm_start,
)
from backbones.classification.pretraining import NetworkConfig, build_network


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
    with caplog.at_level(logging.WARNING, "backbones.networks.warm_start"):
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


SIZE = {"input_size": 96, "grids": (44, 21, 10)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A network that wants other images than its variant, and its file."""
    spec = normalised_otherwise("inception_v3_79", **SIZE)
    model = randomise(InceptionV3(spec, num_classes=10, width=0.25), seed=0).eval()
    path = tmp_path_factory.mktemp("source") / "source.safetensors"
    save_backbone(path, model)
    return model, path


@pytest.mark.parametrize("name", ["inception_v3_79", "inception_v3_151"])
def test_normalisation_comes_with_the_weights(name, source, caplog):
    given, path = source
    with caplog.at_level(logging.INFO):
        config = NetworkConfig(name, width=0.25, aux="none", dropout=0.0, weights=str(path))
        model = build_network(config, num_classes=10).eval()
    changes = SIZE if name == "inception_v3_79" else {}
    assert model.spec == normalised_otherwise(name, **changes)
    said = f"{path}: images of {model.spec.input_size} pixels, normalised by mean (0.2, 0.5, 0.7)"
    assert said in caplog.text
    if name == "inception_v3_79":
        raw = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
        torch.testing.assert_close(model(raw), given(raw), rtol=0, atol=0)
    save_backbone(path.with_name("next.safetensors"), model)
    third = start_backbone(name, path.with_name("next.safetensors"), num_classes=3, width=0.25)
    assert third.spec == model.spec


def test_files_of_other_programs_are_for_the_usual_normalisation(tmp_path, caplog):
    given = randomise(small(), seed=0).state_dict()
    save_weights(tmp_path / "w.safetensors", given, {"format": "pt", "mean": 117})
    with caplog.at_level(logging.INFO):
        model = start_backbone(
            "inception_v3_79", tmp_path / "w.safetensors", num_classes=10, width=0.25
        )
    assert model.spec == SPECS["inception_v3_79"]
    assert "for the weights do not say" in caplog.text
    assert_same_tensors(model.state_dict(), given)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"kind": "detector"}, "expected a checkpoint of kind 'backbone', found kind 'detector'"),
        ({"kind": "backbone"}, "broken metadata: no 'variant'"),
        (
            {"kind": "backbone", "variant": "inception_v3_80"},
            "broken metadata: unknown backbone 'inception_v3_80': did you mean inception_v3",
        ),
        (
            {},
            "these weights do not fit inception_v3_79 (layout released, width 0.5), they are of "
            "width 0.25: set model.width to that or less: stem",
        ),
    ],
)
def test_what_cannot_be_started_from_names_the_file(metadata, message, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small().state_dict(), metadata)
    with pytest.raises(UserError, match=re.escape(f"{path}: {message}")):
        start_backbone("inception_v3_79", path, num_classes=10, width=0.5)


def test_a_variant_has_sound_normalisation():
    spec = SPECS["inception_v3_79"]
    for change, words in (
        ({"mean": (0.5, 0.5, 1.5)}, "mean must be of values scaled"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be positive"),
        ({"input_size": 20}, "at least 21, got 20"),
        ({"input_size": 79.0}, "whole number"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(spec, **change)
