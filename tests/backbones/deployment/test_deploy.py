import copy
import pickle

import pytest
import torch
from helpers.operations import Operations
from helpers.trained_network import images, trained
from torch import nn

from backbones import SPECS, create_backbone
from backbones.deployment.folding import ConvReLU, fold_batch_norm
from backbones.deployment.onednn import OneDNNConv, can_fuse
from backbones.deployment.pytorch import MaxPoolOfReLU, _take_uint8, deploy
from backbones.networks.blocks import InceptionA, InceptionB, InceptionC


@pytest.fixture(params=["fused", "plain"])
def fused(request, monkeypatch):
    """Both with oneDNN's fused convolution and where PyTorch has none."""
    if request.param == "plain":
        monkeypatch.setattr("backbones.deployment.onednn.can_fuse", lambda dtype: False)
    elif not can_fuse(torch.float32):
        pytest.skip("this PyTorch has no fused convolution")
    return request.param == "fused"


@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_same_outputs_as_the_trained_network(name, fused):
    model = trained(name, aux="batch_norm")
    deployed = deploy(model, "fp32")
    assert any(isinstance(layer, OneDNNConv) for layer in deployed.modules()) == fused
    raw, x = images(model)
    stages = model.forward_stages(x)
    for stage, expected in zip(deployed.forward_stages(x), stages, strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deployed.forward_features(x), stages[-1], rtol=1e-4, atol=1e-4)
    logits = model(x)
    assert logits.std() > 0.3  # so that 1e-4 means something
    torch.testing.assert_close(deployed(x), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(deployed(raw), logits, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_full_width():
    model = trained("inception_v3_79", width=1.0)
    _, x = images(model, 1)
    torch.testing.assert_close(deploy(model, "fp32")(x), model(x), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_bf16_is_as_near_as_its_rounding(fused):
    model = trained("inception_v3_79")
    deployed = deploy(model, "bf16")
    raw, x = images(model, 4)
    assert deployed.stage_c[0].branch1x1.weight.dtype == torch.bfloat16
    logits = model(x)
    for y in (deployed(x), deployed(raw)):
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, logits, rtol=0, atol=0.05)
    assert [stage.dtype for stage in deployed.forward_stages(x)] == [torch.bfloat16] * 3


@torch.inference_mode()
def test_uint8_images_lose_nothing_in_bf16():
    """Where the image has the mean colour, rounded weights and the shift cancel each other."""
    conv = nn.utils.skip_init(ConvReLU, 3, 8, 3)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    raw = _take_uint8(conv, mean, std, torch.bfloat16)
    assert raw.weight.dtype == torch.bfloat16
    colour = 255 * torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    out = nn.functional.conv2d(colour.double(), raw.weight.double(), raw.bias.double())
    torch.testing.assert_close(out.flatten(), conv.bias.double(), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_logits_are_fp32_under_autocast_too():
    deployed = deploy(trained("inception_v3_79"), "bf16")
    _, x = images(deployed, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(deployed(x), deployed(x).float())
        assert deployed(x).dtype == torch.float32


@pytest.mark.skipif(not can_fuse(torch.float32), reason="no fused convolutions here")
@torch.inference_mode()
def test_other_weights_are_used_and_other_devices_refused():
    model = trained("inception_v3_79")
    deployed = deploy(model, "fp32")
    _, x = images(model, 2)
    before = deployed(x)
    for parameter in model.parameters():
        parameter.mul_(1.01)
    other = deploy(model, "fp32")
    deployed.load_state_dict(other.state_dict())
    assert torch.equal(deployed(x), other(x))
    assert not torch.equal(deployed(x), before)
    for change in ({"device": "meta"}, {"dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match="keeps its device and precision"):
            deploy(model, "fp32").to(**change)


@torch.inference_mode()
def test_synchronised_normalisation_is_folded_too():
    model = trained("inception_v3_79")
    raw, _ = images(model, 1)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert torch.equal(deploy(synchronised, "fp32")(raw), deploy(model, "fp32")(raw))


@torch.inference_mode()
def test_other_batch_and_image_sizes_one_after_the_other():
    model = trained("inception_v3_79")
    deployed = deploy(model, "fp32")
    for count, size in [(1, 79), (3, 96), (3, 79), (1, 21)]:
        _, x = images(model, count, size)
        torch.testing.assert_close(deployed(x), model(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "convolutions", "multiply_adds"),
    [("inception_v3_79", 103, 5.37e9), ("inception_v3", 103, 5.72e9)],
)
@torch.no_grad()  # inference mode would not show what `to` does
def test_operations(name, convolutions, multiply_adds):
    if not can_fuse(torch.float32):
        pytest.skip("this PyTorch has no fused convolution")
    model = create_backbone(name, num_classes=0).eval()
    deployed = deploy(model, "fp32")
    x = torch.rand(1, 3, model.input_size, model.input_size)
    deployed(x)
    with Operations() as operations:
        deployed(x)
    counts = operations.counts
    # 94 of the network and one more for each of the 9 pooled branches, whose average it is.
    assert counts["convolution_pointwise"] == convolutions
    assert operations.multiply_adds == pytest.approx(multiply_adds, rel=5e-3)
    assert counts["cat"] == 11  # one a block
    # Nothing passes over a map without need; the one copy puts the image into channels_last.
    assert counts["to_copy"] + counts["clone"] + counts["copy"] == 1
    assert not [name for name in counts if "norm" in name or "relu" in name or "convert" in name]
    assert counts["reorder_convolution_weight"] == 0


@pytest.mark.parametrize("num_classes", [0, 10])
@torch.inference_mode()
def test_stands_in_for_the_network(num_classes):
    model = trained("inception_v3_151", num_classes=num_classes)
    deployed = deploy(model, "fp32")
    for name in ("spec", "input_size", "num_classes", "num_features", "feature_info"):
        assert getattr(deployed, name) == getattr(model, name)
    _, x = images(model)
    assert deployed(x).shape == (2, num_classes or model.num_features)
    torch.testing.assert_close(deployed.forward_head(deployed.forward_features(x)), deployed(x))
    assert type(deployed.get_classifier()) is type(model.get_classifier())
    assert not any(parameter.requires_grad for parameter in deployed.parameters())


def test_the_trained_network_stays_as_it_is():
    model = trained("inception_v3_79")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy(model, "bf16")
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.inference_mode()
def test_copies_and_pickles():
    model = trained("inception_v3_79")
    deployed = deploy(model, "bf16")
    _, x = images(model, 1)
    y = deployed(x)
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(twin(x), y)


def test_no_training():
    model = create_backbone("inception_v3_79", num_classes=3, width=0.25)
    with pytest.raises(ValueError, match=r"call \.eval\(\)"):
        deploy(model)
    with pytest.raises(ValueError, match="precision must be auto, fp32 or bf16, got 'fp16'"):
        deploy(model.eval(), "fp16")
    deployed = deploy(model)
    with pytest.raises(ValueError, match="cannot be trained"):
        deployed.train()
    assert deployed.eval() is deployed


def test_wrong_input():
    deployed = deploy(create_backbone("inception_v3_79", num_classes=3, width=0.25).eval())
    with pytest.raises(ValueError, match="uint8 or normalised float images"):
        deployed(torch.zeros(1, 3, 79, 79, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 21x21"):
        deployed(torch.zeros(1, 3, 79, 20))


@pytest.mark.parametrize(
    "block", [InceptionA(8, 8, 0.25), InceptionB(8, 8, 0.25), InceptionC(8, 0.25)]
)
def test_pooled_branch_folds_exactly_at_the_border(block):
    # The bias comes after the average: before it, the zeros outside would dilute it.
    model = create_backbone("inception_v3_79", num_classes=0, width=0.25).eval()
    branch = block.branch_pool.double().eval()
    branch.bn.bias.data.fill_(1.0)
    branch.bn.running_mean.fill_(-0.5)
    model.stage_a = torch.nn.Sequential(branch)
    folded = fold_batch_norm(model.double()).stage_a.double()
    x = torch.rand(1, 8, 5, 6, dtype=torch.double)
    torch.testing.assert_close(folded(x), branch(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(3, 3), (5, 8), (36, 17)])
def test_max_pool_of_bits(dtype, size):
    x = torch.randn(2, 5, *size).to(dtype).relu_()
    x[0, 0, 0, 0], x[0, 0, 1, 1] = torch.inf, 1e-40  # a denormal
    x = x.contiguous(memory_format=torch.channels_last)
    pooled = MaxPoolOfReLU(3, 2)(x)
    assert torch.equal(pooled, torch.nn.functional.max_pool2d(x, 3, 2))
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_fused_convolution_is_tried_before_use(monkeypatch, caplog):
    if not can_fuse(torch.float32):
        pytest.skip("this PyTorch has no fused convolution")

    def absent(*args):
        raise RuntimeError("no such operation\nC++ stack trace")

    can_fuse.cache_clear()
    monkeypatch.setattr(OneDNNConv, "forward", absent)
    assert not can_fuse(torch.float32)
    assert "no fused convolutions in torch.float32: no such operation" in caplog.text
    can_fuse.cache_clear()
    monkeypatch.setattr(OneDNNConv, "forward", lambda self, x: torch.zeros_like(x))
    assert not can_fuse(torch.float32)
    assert "they compute something else" in caplog.text
    can_fuse.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_convolution_equals_the_plain(dtype):
    if not can_fuse(dtype):
        pytest.skip(f"this PyTorch has no fused convolution in {dtype}")
    for conv in (
        ConvReLU(16, 32, (1, 7), padding=(0, 3)),
        ConvReLU(32, 32, 3, padding=1, groups=32),
        torch.nn.Conv2d(16, 32, 3, stride=2, bias=False),
    ):
        conv = conv.to(dtype).requires_grad_(False)
        x = torch.randn(3, conv.in_channels, 9, 8).to(dtype)
        torch.testing.assert_close(OneDNNConv(conv)(x), conv(x), rtol=0.02, atol=0.02)
