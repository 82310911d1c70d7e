import math
import re

import pytest
import torch

from backbones import SPECS, InceptionOutput, UserError, create_backbone
from backbones.networks.inception import WIDTHS
from backbones.networks.normalization import normalize

SMALL = {"num_classes": 10, "width": 0.25}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", SPECS)
def test_any_larger_size_works(name):
    model = create_backbone(name, **SMALL).eval()
    least = model.spec.min_size
    with torch.no_grad():
        for size in [(least, least), (least + 30, least + 1)]:
            assert model(torch.rand(2, 3, *size)).shape == (2, 10)


@pytest.mark.parametrize("size", [(74, 200), (200, 74)])
def test_too_small_an_image(size):
    model = create_backbone("inception_v3", **SMALL)
    message = (
        f"inception_v3 takes images of at least 75x75 pixels, got {size[0]}x{size[1]}; "
        "inception_v3_151 takes 39x39 and more"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.rand(1, 3, *size))


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [
        ("inception_v3_table1", 30, "inception_v3_79_table1 takes 21x21 and more"),
        ("inception_v3_79", 20, "inception_v3_79 takes the smallest images, 21x21"),
        ("inception_v2", 70, "inception_v3_79 takes the smallest images, 21x21"),
    ],
)
def test_too_small_an_image_names_a_variant_that_helps(name, size, hint):
    with pytest.raises(ValueError, match=hint):
        create_backbone(name, **SMALL)(torch.rand(1, 3, size, size))


def test_uint8_images_are_normalised_inside():
    network = create_backbone("inception_v3_79", **SMALL).eval()
    raw = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    spec = network.spec
    with torch.no_grad():
        assert torch.equal(network(raw), network(normalize(raw, spec.mean, spec.std)))


@pytest.mark.parametrize(
    "x",
    [torch.rand(3, 79, 79), torch.rand(1, 1, 79, 79), torch.zeros(1, 3, 79, 79, dtype=torch.int64)],
)
def test_not_a_batch_of_rgb_images(x):
    with pytest.raises(ValueError, match=r"uint8 or normalised float images \[N, 3, H, W\], got"):
        create_backbone("inception_v3_79", **SMALL)(x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"width": 0.3}, "width must be one of"),
        ({"aux": "bn"}, "aux must be"),
        ({"num_classes": -1}, "num_classes must be at least 0"),
        ({"num_classes": 0, "aux": "plain"}, "num_classes must be at least 1"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_arguments_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("inception_v3_79", **kwargs)


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean inception_v3_79 or"):
        create_backbone("inception_v3_97")
    with pytest.raises(UserError, match="known: inception_v3, "):
        create_backbone("resnet50")


@pytest.mark.parametrize("width", WIDTHS)
def test_width(width):
    with torch.device("meta"):
        model = create_backbone("inception_v3_79", width=width, aux="batch_norm")
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(conv.out_channels % 16 == 0 for conv in convolutions)
    assert model.num_features == 2048 * width
    # Channels on both sides of a convolution shrink, so its cost goes with the square.
    parameters = sum(conv.weight.numel() for conv in convolutions)
    with torch.device("meta"):
        full = create_backbone("inception_v3_79", aux="batch_norm").state_dict()
    full_size = sum(t.numel() for name, t in full.items() if name.endswith("conv.weight"))
    assert parameters == pytest.approx(
        full_size * width**2, rel=0.07
    )  # rounding to multiples of 16


@pytest.mark.parametrize("aux", ["plain", "batch_norm"])
@pytest.mark.parametrize("name", ["inception_v3_79", "inception_v3_79_naive"])
def test_auxiliary_head(name, aux):
    model = create_backbone(name, **SMALL, aux=aux)
    x = torch.rand(2, 3, 79, 79)
    output = model.train()(x)
    assert isinstance(output, InceptionOutput)
    assert output.logits.shape == output.aux_logits.shape == (2, 10)
    output.aux_logits.sum().backward()
    assert model.stage_b[-1].branch1x1.conv.weight.grad.abs().sum() > 0
    assert model.reduction_b.branch3x3_1.conv.weight.grad is None
    assert isinstance(model.eval()(x), torch.Tensor)


def test_without_auxiliary_head_training_returns_logits():
    model = create_backbone("inception_v3_79", **SMALL)
    assert model.aux_head is None
    assert model.train()(torch.rand(2, 3, 79, 79)).shape == (2, 10)


def test_dropout_acts_in_training_only():
    model = create_backbone("inception_v3_79", num_classes=0, width=0.25, dropout=0.5)
    features = torch.ones(2, model.num_features, 1, 1)
    dropped = model.train().forward_head(features)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert model.eval().forward_head(features).unique().tolist() == [1.0]


def test_forward_is_head_of_features():
    model = create_backbone("inception_v3_79", **SMALL).eval()
    x = torch.rand(1, 3, 79, 79)
    with torch.no_grad():
        features = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(features), model(x))
    assert features.shape == (1, 512, 8, 8)
    assert model.input_size == 79


def test_reset_classifier_keeps_device_type_and_mode():
    model = create_backbone("inception_v3_79", **SMALL, aux="batch_norm").double().eval()
    body = model.stage_c[1].branch1x1.conv.weight.clone()
    model.reset_classifier(4)
    assert model.num_classes == 4
    assert model.get_classifier() is model.fc
    assert model.fc.weight.shape == (4, 512)
    assert model.fc.weight.dtype == model.aux_head.fc.weight.dtype == torch.double
    assert not model.fc.training
    assert 0 < model.fc.weight.abs().max() <= 0.02
    torch.testing.assert_close(model.stage_c[1].branch1x1.conv.weight, body)
    output = model.train()(torch.rand(2, 3, 79, 79, dtype=torch.double))
    assert output.logits.shape == output.aux_logits.shape == (2, 4)


def test_reset_classifier_to_none_gives_pooled_features():
    model = create_backbone("inception_v3_79", **SMALL, aux="plain")
    model.reset_classifier(0)
    assert model.aux == "none"
    assert not [name for name in model.state_dict() if name.startswith(("fc.", "aux_head."))]
    assert model.train()(torch.rand(2, 3, 79, 79)).shape == (2, 512)
    with pytest.raises(ValueError, match="at least 0"):
        model.reset_classifier(-1)


def test_initialisation():
    model = create_backbone("inception_v3_79", num_classes=100, aux="batch_norm").train()
    weight = model.stage_b[0].branch7x7_2.conv.weight.detach()
    # A normal distribution cut at two standard deviations keeps 0.88 of its deviation.
    assert weight.std().item() / math.sqrt(2 / (128 * 7)) == pytest.approx(0.88, abs=0.02)
    assert model.aux_head.conv1.conv.weight.std().item() == pytest.approx(0.0088, abs=2e-4)
    assert model.aux_head.fc.weight.std().item() == pytest.approx(0.00088, abs=2e-5)
    with torch.no_grad():
        output = model(torch.randn(4, 3, 79, 79))
    loss = torch.nn.functional.cross_entropy(output.logits, torch.arange(4))
    assert loss.item() == pytest.approx(math.log(100), rel=0.1)


@pytest.mark.parametrize("name", SPECS)
def test_feature_info_describes_the_maps(name):
    with torch.device("meta"):
        model = create_backbone(name, width=0.25)
        x = torch.empty(1, 3, 640, 640)
    shapes = {}
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(
            lambda _, __, out, module=info["module"]: shapes.update({module: out.shape})
        )
    model(x)
    for info in model.feature_info:
        _, channels, height, _ = shapes[info["module"]]
        assert channels == info["num_chs"]
        assert height == pytest.approx(640 / info["reduction"], abs=9)
    reductions = [info["reduction"] for info in model.feature_info]
    assert reductions == sorted(set(reductions))
