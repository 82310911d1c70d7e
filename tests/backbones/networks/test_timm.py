"""Our networks where timm's are expected: the same calls on both, with the same weights."""

import copy
import logging

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import param_groups_layer_decay

from backbones import SPECS, InceptionV3, UserError, create_backbone, save_backbone
from backbones.deployment.onnx import export_backbone
from backbones.deployment.pytorch import deploy
from backbones.networks import narrowing, statistics
from backbones.networks.finetuning import layer_scales
from detect.rcnn.config import RCNNConfig
from detect.rcnn.model import RCNN

needs_intermediates = pytest.mark.skipif(
    not hasattr(timm.models.InceptionV3, "forward_intermediates"),
    reason="timm's own network has none before 1.0.31",
)

NAME = "inception_v3_79_naive"
"""The variant that is timm's `inception_v3`, which it fits with all weights."""


def with_weights(state, **kwargs):
    """Our network from weights of timm's, as `pretrained=True` loads them."""
    overlay = {"state_dict": dict(state), "num_classes": 7}
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return timm.create_model("inception_v3", num_classes=7).eval()


@pytest.fixture(scope="module")
def ours(theirs):
    return with_weights(theirs.state_dict(), num_classes=7)


@pytest.fixture(scope="module")
def both(ours, theirs):
    return ours, theirs


@pytest.fixture
def x():
    return torch.randn(2, 3, 79, 79, generator=torch.Generator().manual_seed(0))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@torch.inference_mode()
def test_forward_and_its_halves(both, x):
    results = []
    for model in both:
        features = model.forward_features(x)
        head = [model.forward_head(features, pre_logits=pre) for pre in (False, True)]
        results.append([model(x), features, *head])
        assert (model.num_features, model.head_hidden_size, model.num_classes) == (2048, 2048, 7)
        assert model.get_classifier().weight.shape == (7, 2048)
    for found, expected in zip(*results, strict=True):
        same(found, expected)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", ""])
@torch.inference_mode()
def test_poolings(both, x, pool):
    results, sizes = [], []
    for model in map(copy.deepcopy, both):
        model.reset_classifier(0, pool)
        results.append(model(x))
        if pool:
            model.reset_classifier(5)
            sizes.append((*model.fc.weight.shape, model.head_hidden_size, *model(x).shape))
    same(*results)
    assert len(set(sizes)) <= 1


def test_poolings_that_do_not_fit():
    with pytest.raises(ValueError, match="global_pool must be one of"):
        timm.create_model(NAME, width=0.25, global_pool="mean")
    model = timm.create_model(NAME, width=0.25, num_classes=0, global_pool="")
    with pytest.raises(ValueError, match="leaves a map, which has no classifier"):
        model.reset_classifier(3)
    assert model.num_classes == 0
    model.reset_classifier(3, "catavgmax")
    assert model.get_classifier().in_features == model.head_hidden_size == 1024


@needs_intermediates
@pytest.mark.parametrize(
    ("indices", "stop_early"), [(None, False), (2, False), ([0, -2], True), ([1], True)]
)
@torch.inference_mode()
def test_intermediates_and_what_is_left_without_the_rest(both, x, indices, stop_early):
    results = []
    for model in map(copy.deepcopy, both):
        last, maps = model.forward_intermediates(x, indices, stop_early=stop_early)
        alone = model.forward_intermediates(x, indices, intermediates_only=True)
        for one, other in zip(maps, alone, strict=True):
            assert torch.equal(one, other)
        kept = model.prune_intermediate_layers(1 if indices is None else indices)
        parameters = sum(p.numel() for p in model.parameters())
        results.append([last, *maps, model(x)])
        results[-1].append(torch.tensor([*kept, parameters, model.num_features, model.num_classes]))
    for found, expected in zip(*results, strict=True):
        same(found.float(), expected.float())
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NLC'"):
        both[0].forward_intermediates(x, output_fmt="NLC")


@needs_intermediates
@pytest.mark.parametrize("feature_cls", ["hook", "getter"])
@torch.inference_mode()
def test_features_only(both, x, theirs, feature_cls):
    kinds = {"features_only": True, "out_indices": (1, 3), "feature_cls": feature_cls}
    found = with_weights(theirs.state_dict(), **kinds)
    expected = theirs.forward_intermediates(x, [1, 3], intermediates_only=True)
    for one, other in zip(found(x), expected, strict=True):
        same(one, other)
    assert found.feature_info.channels() == [192, 768]
    assert found.feature_info.reduction() == [4, 16]
    for own, info in zip(*(model.feature_info for model in both), strict=True):
        assert (own["num_chs"], own["reduction"]) == (info["num_chs"], info["reduction"])


@pytest.mark.parametrize("in_chans", [1, 4])
@torch.inference_mode()
def test_other_channels_get_weights_of_three(theirs, in_chans):
    """As timm adapts them, from its own files and from ours."""
    x = torch.randn(2, in_chans, 79, 79)
    overlay = {"state_dict": theirs.state_dict(), "num_classes": 7}
    kwargs = {"in_chans": in_chans, "num_classes": 7}
    expected = timm.create_model(
        "inception_v3", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs
    ).eval()
    found = with_weights(theirs.state_dict(), **kwargs)
    same(found(x), expected(x))
    assert found.stem.conv1.conv.in_channels == in_chans
    with pytest.raises(ValueError, match=rf"normalised float images \[N, {in_chans}, H, W\], got"):
        found((255 * x).to(torch.uint8))


def test_weights_that_cannot_be_had_are_a_line(tmp_path):
    for overlay in (
        {"url": "http://127.0.0.1:9/a-0cc3c7bd.pth"},
        {"file": str(tmp_path / "a.pth")},
    ):
        words = rf"{NAME}: the pretrained weights cannot be read .*\): try again, or download https"
        with pytest.raises(UserError, match=words) as error:
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
        assert "\n" not in str(error.value)


def test_statistics_are_matched_for_other_channels_too(monkeypatch):
    """A grey image is to the network for one channel what it is in colours to the other."""
    monkeypatch.setattr(statistics, "PHOTOGRAPHS", ("coffee",))  # two images, to be fast
    monkeypatch.setattr(statistics, "SIDES", (110,))
    torch.manual_seed(0)
    public = timm.create_model("inception_v3", num_classes=7).state_dict()
    overlay = {"state_dict": public, "num_classes": 7}
    colours, grey = (
        timm.create_model(
            *("inception_v3_79", True),
            **{"pretrained_cfg_overlay": overlay, "num_classes": 7, "in_chans": in_chans},
        ).eval()
        for in_chans in (3, 1)
    )
    averaged = public["Mixed_5b.branch1x1.bn.running_var"]
    assert not torch.equal(colours.stage_a[0].branch1x1.bn.running_var, averaged)
    x = torch.randn(2, 1, 79, 79)
    with torch.inference_mode():
        same(grey(x), colours(x.expand(-1, 3, -1, -1)))


def test_public_weights_start_a_narrow_network(monkeypatch, caplog):
    monkeypatch.setattr(narrowing, "IMAGES", 7)
    monkeypatch.setattr(narrowing, "PLACES", 16)
    torch.manual_seed(0)
    public = timm.create_model("inception_v3", num_classes=7).state_dict()
    overlay = {"state_dict": public, "num_classes": 7}
    with caplog.at_level(logging.INFO):
        model = timm.create_model(
            *("inception_v3_79", True),
            **{"pretrained_cfg_overlay": overlay, "num_classes": 7, "in_chans": 1, "width": 0.25},
        )
    assert "narrowed from width 1 to 0.25" in caplog.text
    assert model.stem.conv1.conv.weight.shape == (16, 1, 3, 3)
    assert not torch.equal(model.stem.conv1.bn.running_var, torch.ones(16))


def test_a_checkpoint_of_ours_with_one_channel_and_other_classes(tmp_path):
    path = tmp_path / "net.safetensors"
    trained = create_backbone("inception_v3_79", num_classes=4, width=0.25, aux="plain").eval()
    save_backbone(path, trained)
    kwargs = {"width": 0.25, "in_chans": 1, "pretrained": True}
    overlay = {"file": str(path), "num_classes": 4}
    model = timm.create_model("inception_v3_79", pretrained_cfg_overlay=overlay, **kwargs).eval()
    x = torch.randn(2, 1, 79, 79)
    with torch.inference_mode():
        same(model(x), trained(x.expand(-1, 3, -1, -1)))
    other = timm.create_model(
        "inception_v3_79", pretrained_cfg_overlay=overlay, num_classes=9, **kwargs
    )
    assert other.fc.weight.shape == (9, 512)
    assert torch.equal(
        other.stage_c[1].branch1x1.conv.weight, model.stage_c[1].branch1x1.conv.weight
    )


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_layers_by_depth(both, coarse):
    """The deeper a parameter lies, the later its group; heads come last."""
    model = both[0]
    place = model.group_matcher(coarse=coarse)
    groups = [place(name) for name, _ in model.named_parameters()]
    assert groups == sorted(groups)
    assert groups[-1] == place("fc.weight") == float("inf")
    assert len(set(groups)) == (6 if coarse else 12) + 1
    assert model.no_weight_decay() == set()


def test_layer_decay_of_timm_is_ours():
    model = create_backbone("inception_v3_79", width=0.25, num_classes=3)
    ours = layer_scales(model, 0.5)
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        for parameter in group["params"]:
            assert group["lr_scale"] == ours.get(id(parameter), 1.0)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_gradients_and_statistics_are_equal(frozen):
    torch.manual_seed(0)
    plain = create_backbone("inception_v3_79", num_classes=3, width=0.25, aux="batch_norm").train()
    if frozen:
        plain.stem.requires_grad_(False).eval()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = torch.randn(2, 3, 45, 45)
    kept = []
    for model in (plain, saving):
        bytes_kept = 0

        def count(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.nbytes
            return tensor

        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = sum(output.square().sum() for output in model(x))
            loss.backward()
        kept.append(bytes_kept)
    assert kept[1] < kept[0] / 3
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    state = saving.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert state["stage_a.0.branch1x1.bn.num_batches_tracked"] == 2
    # A set back switch, and evaluation, keep nothing back.
    saving.set_grad_checkpointing(False)
    assert saving.eval()(x).shape == (2, 3)


CHANGES = [
    ({"in_chans": 1}, "has in_chans 1"),
    ({"global_pool": "max"}, "has global_pool 'max'"),
    ({}, "has global_pool '' and layers taken off"),
]


@pytest.mark.parametrize(("kwargs", "message"), CHANGES)
def test_what_files_and_detectors_cannot_hold_is_refused(tmp_path, kwargs, message):
    model = timm.create_model("inception_v3_79", width=0.25, num_classes=0, **kwargs).eval()
    if not kwargs:
        model.prune_intermediate_layers([1])
    for use in (
        lambda: save_backbone(tmp_path / "net.safetensors", model),
        lambda: export_backbone(tmp_path / "net.onnx", model),
        lambda: deploy(model),
        lambda: RCNN(model, None, 2, RCNNConfig()),
    ):
        with pytest.raises(UserError, match=message):
            use()
    assert not list(tmp_path.iterdir())


def test_names_and_what_they_say():
    names = timm.list_models("inception_v3_79*")
    assert names == sorted(name for name in SPECS if name.startswith("inception_v3_79"))
    spec, config = SPECS["inception_v3_79"], timm.create_model("inception_v3_79").pretrained_cfg
    assert (config["mean"], config["std"]) == (spec.mean, spec.std)
    assert config["input_size"] == (3, 79, 79)
    model = create_backbone("inception_v3_79", width=0.25)
    assert isinstance(model.get_submodule(config["first_conv"]), torch.nn.Conv2d)
    assert model.get_submodule(config["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", [name for name in SPECS if name != "inception_v3"])
def test_timm_builds_every_variant(name):
    spec = SPECS[name]
    model = timm.create_model(name, num_classes=7, width=0.25, drop_rate=0.1)
    assert isinstance(model, InceptionV3)
    assert (model.num_classes, model.dropout) == (7, 0.1)
    config = resolve_model_data_config(model)
    assert config["input_size"] == (3, spec.input_size, spec.input_size)
    assert (config["mean"], config["std"]) == (spec.mean, spec.std)

    extractor = timm.create_model(name, num_classes=7, width=0.25, features_only=True).eval()
    size = spec.min_size
    with torch.no_grad():
        maps = extractor(torch.rand(1, 3, size, size))
    assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
    assert [m.shape[-1] for m in maps][-3:] == [7, 3, 1]


def test_timm_keeps_its_own_inception_v3():
    with torch.device("meta"):
        assert type(timm.create_model("inception_v3")).__module__ == "timm.models.inception_v3"


def test_timm_features_at_chosen_levels():
    model = timm.create_model("inception_v3_79", width=0.25, features_only=True, out_indices=(1, 3))
    assert model.feature_info.reduction() == [2, 8]
