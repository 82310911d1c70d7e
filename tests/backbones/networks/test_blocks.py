import pytest
import torch

from backbones.networks.blocks import (
    AuxiliaryHead,
    ConvNormAct,
    InceptionA,
    InceptionB,
    InceptionC,
    ReductionA,
    ReductionB,
    scale_channels,
)


@pytest.mark.parametrize(
    ("block", "channels", "size"),
    [
        (InceptionA(16, 32, 0.25), 16 + 16 + 32 + 16, 9),
        (InceptionB(16, 128, 0.25), 4 * 48, 9),
        (InceptionC(16, 0.25), 80 + 4 * 96 + 48, 9),
        (ReductionA(16, 0.25), 96 + 32 + 16, 4),
        (ReductionB(16, 0.25), 80 + 48 + 16, 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_output_shape(block, channels, size):
    out = block(torch.rand(2, 16, 9, 10))
    assert out.shape == (2, channels, size, size + 1 if size == 9 else size)
    assert block.out_channels == channels


@pytest.mark.parametrize("block", [InceptionA(8, 8, 0.25), InceptionB(8, 8, 0.25)])
def test_blocks_of_a_stage_move_nothing(block):
    # Flipping the image flips the map if the weights are symmetric and no window is off centre.
    for layer in block.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = layer.weight.data + layer.weight.data.flip(2, 3)
    block = block.double().eval()
    x = torch.rand(1, 8, 8, 8, dtype=torch.double)
    torch.testing.assert_close(block(x.flip(2, 3)), block(x).flip(2, 3))


def test_scale_channels():
    assert [scale_channels(c, 1.0) for c in (32, 48, 80, 448)] == [32, 48, 80, 448]
    assert [scale_channels(c, 0.25) for c in (8, 32, 96, 160)] == [16, 16, 32, 48]


def test_conv_norm_act():
    layer = ConvNormAct(3, 8, 3)
    assert layer.conv.bias is None
    assert layer.bn.eps == 1e-3
    assert layer(torch.randn(2, 3, 5, 5)).min() == 0
    assert ConvNormAct(3, 8, 3, norm=False).conv.bias is not None


def norms(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_auxiliary_head_normalises_its_fully_connected_layer_on_request():
    plain, normalised = (AuxiliaryHead(768, 10, batch_norm) for batch_norm in (False, True))
    assert len(norms(plain)) == 1
    assert len(norms(normalised)) == 2
    assert plain.conv1.conv.bias.shape == (768,)


@pytest.mark.parametrize("size", [(3, 3), (16, 17), (17, 17), (30, 41)])
def test_auxiliary_head_takes_any_grid(size):
    assert AuxiliaryHead(8, 10, True, 0.25)(torch.rand(2, 8, *size)).shape == (2, 10)


def test_auxiliary_head_resets_its_classifier_alone():
    head = AuxiliaryHead(8, 10, True, 0.25).double().eval()
    convolution = head.conv1.conv.weight.clone()
    head.reset_classifier(3)
    assert head.fc.weight.shape == (3, 192)
    assert head.fc.weight.dtype == torch.double
    assert not head.fc.training
    assert 0 < head.fc.weight.abs().max() <= 0.002
    torch.testing.assert_close(head.conv1.conv.weight, convolution)
