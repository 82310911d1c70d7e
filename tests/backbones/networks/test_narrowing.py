"""Narrow networks from wide ones, in which there is as much as the test put there."""

import logging

import pytest
import torch
from helpers.trained_network import assert_same_tensors, randomise, small

from backbones import save_backbone, start_backbone
from backbones.common.errors import UserError
from backbones.networks import narrowing
from backbones.networks.blocks import ConvNormAct
from backbones.networks.statistics import photographs


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(narrowing, "IMAGES", 28)


def inputs_by_layer(network, channels):
    """Names `(layer, channel)` of what each layer is given, where `channels` numbers its output."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, ConvNormAct)}
    given, handles = {}, []
    for place, (name, layer) in enumerate(layers.items(), start=1):

        def label(layer, x, out, name=name, place=place):
            given[name] = x[0][0, :, 0, 0].long()
            own = 1000 * place + torch.arange(out.shape[1]) % channels[name]
            return own.float()[None, :, None, None].expand_as(out)

        handles.append(layer.register_forward_hook(label))
    network.forward_features(torch.zeros(1, 3, 79, 79))
    for handle in handles:
        handle.remove()
    given["stem.conv1"] = torch.arange(3)
    return given


@torch.no_grad()
def with_duplicates(narrow, wide):
    """Make `wide` a network of `narrow`'s channels, some of them several times."""
    layers = {n: m for n, m in narrow.named_modules() if isinstance(m, ConvNormAct)}
    channels = {name: layer.conv.out_channels for name, layer in layers.items()}
    given, own = (inputs_by_layer(network, channels) for network in (wide, narrow))
    for name, layer in layers.items():
        same = (given[name][None] == own[name][:, None]).float()  # [narrow inputs, wide inputs]
        kernel = torch.einsum("oihw,ij->ojhw", layer.conv.weight, same / same.sum(1, keepdim=True))
        target = wide.get_submodule(name)
        rows = torch.arange(target.conv.out_channels) % channels[name]
        target.conv.weight.copy_(kernel[rows])
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(target.bn, key).copy_(getattr(layer.bn, key)[rows])
    return wide


@torch.no_grad()
def test_a_network_of_duplicated_channels_is_narrowed_exactly(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(narrowing, "RIDGES", (1e-5,))  # the others would be worse
    original = randomise(small("inception_v3", num_classes=0), seed=0).eval()
    wide = with_duplicates(original, small("inception_v3", num_classes=0, width=0.5).eval())
    save_backbone(tmp_path / "wide.safetensors", wide)
    with caplog.at_level(logging.INFO):
        found = start_backbone(
            "inception_v3_151", tmp_path / "wide.safetensors", num_classes=3, width=0.25
        )
    assert "narrowed from width 0.5 to 0.25" in caplog.text
    assert "block keep 1.00, 1.00 and " in caplog.text
    assert found.training
    small_image = photographs(151)[:2]
    enlarged = small_image.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :299, :299]
    expected = original.forward_features(enlarged).transpose(0, 1).flatten(1)
    # Channels come in another order: each is one of the original's, and each of these is there.
    features = found.eval().forward_features(small_image).transpose(0, 1).flatten(1)
    distances = torch.cdist(features, expected)
    assert float(expected.norm(dim=1).median()) > 1
    for axis in (0, 1):
        assert distances.amin(axis).norm() < 0.05 * expected.norm()


def responses(count, seed):
    """`[count, 24]` of which many are nearly the same, and what a next layer makes of them."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(count, 8, generator=generator)
    fixed = torch.Generator().manual_seed(7)
    mixing, kernel = (torch.randn(8, 24, generator=fixed), torch.randn(24, 6, generator=fixed))
    noise = 0.1 * torch.randn(count, 24, generator=generator)
    given = (sources @ mixing + noise).relu()
    return given, given @ kernel - 3


def test_a_kernel_solved_for_beats_a_copied_one_where_it_was_not_fitted():
    given, wanted = responses(4000, seed=0)
    kept = narrowing.choose_channels(given, 10)
    kernel, bias = narrowing._solve(given[:, kept], wanted, torch.arange(4000) % 4 == 0)
    new, new_wanted = responses(1000, seed=1)
    copied = torch.linalg.lstsq(given, wanted + 3).solution[kept]
    shift = (wanted - given[:, kept] @ copied).mean(0)
    errors = [
        float(narrowing._errors(new[:, kept] @ k + b, new_wanted)[0])
        for k, b in ((kernel, bias), (copied, shift))
    ]
    assert errors[0] < 0.6 * errors[1]


def test_a_channel_is_not_kept_twice():
    given, _ = responses(1000, seed=0)
    twice = torch.cat([given, 1.5 * given, torch.zeros(1000, 4)], 1)
    kept = narrowing.choose_channels(twice, 24)
    assert sorted(int(channel) % 24 for channel in kept) == list(range(24))


EXPECTED = r"these weights do not fit inception_v3_79 \(layout released, width 0.5"


@pytest.mark.parametrize("name", ["inception_v2", "inception_v3_table1"])
def test_a_wider_network_of_another_layout_is_refused(name, tmp_path):
    save_backbone(tmp_path / "wide.safetensors", small(name, num_classes=0, width=0.5))
    with pytest.raises(UserError, match=EXPECTED):
        start_backbone("inception_v3_79", tmp_path / "wide.safetensors", num_classes=3, width=0.25)


def _body(network):
    return {n: t for n, t in network.state_dict().items() if not n.startswith(("fc", "aux_head"))}


def test_the_low_resolution_network_is_narrowed_from_the_exact_one(tmp_path, monkeypatch, caplog):
    """Each time to the same weights."""
    monkeypatch.setattr(narrowing, "IMAGES", 7)
    monkeypatch.setattr(narrowing, "PLACES", 16)
    path = tmp_path / "wide.safetensors"
    save_backbone(path, randomise(small("inception_v3", num_classes=0, width=0.5), seed=0))
    with caplog.at_level(logging.INFO):
        model, again = (
            start_backbone("inception_v3_79", path, num_classes=3, width=0.25, aux="plain")
            for _ in range(2)
        )
    assert caplog.text.count("narrowed from width 0.5 to 0.25") == 2
    assert_same_tensors(*(_body(network) for network in (model, again)))
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    # Normalisation is that of what the network itself gives on photographs.
    norm = model.stage_c[1].branch_pool.bn
    seen = []
    norm.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()(narrowing._pieces(79)[0])
    off = (seen[0].mean((0, 2, 3)) - norm.running_mean).abs()
    assert bool((off < 0.25 * norm.running_var.sqrt()).all())  # which a quarter of the places say
