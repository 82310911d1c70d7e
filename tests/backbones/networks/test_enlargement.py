import logging

import pytest
import torch
from helpers.trained_network import fill_statistics, randomise, small
from safetensors.torch import save_file
from torch.nn import functional as F

from backbones import create_backbone, save_backbone, start_backbone
from backbones.networks.enlargement import average_phases, fold_enlargement
from backbones.networks.statistics import photographs


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """To twice the sides by repeating pixels."""
    return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@pytest.mark.parametrize("size", [9, 10])
def test_a_folded_kernel_sees_the_enlarged_image(size):
    images, kernel = torch.rand(2, 3, size, size).double(), torch.randn(4, 3, 3, 3).double()
    expected = F.conv2d(enlarged(images), kernel, stride=2)
    found = F.conv2d(images, fold_enlargement(kernel))
    # The last window of the enlarged image has no third pixel in a window of stride 1.
    torch.testing.assert_close(found, expected[..., : size - 2, : size - 2])


@torch.no_grad()
def test_weights_for_299_pixels_start_the_network_for_151_exactly(tmp_path, caplog):
    torch.manual_seed(0)
    large = create_backbone("inception_v3", num_classes=7, width=0.25).eval()
    fill_statistics(large)
    save_backbone(tmp_path / "large.safetensors", large)
    with caplog.at_level(logging.INFO):
        small = start_backbone(
            "inception_v3_151", tmp_path / "large.safetensors", num_classes=7, width=0.25
        ).eval()
    assert "sees images as the network for 299 pixels sees them enlarged" in caplog.text
    image = torch.randint(0, 256, (1, 3, 151, 151), dtype=torch.uint8)
    expected = large(enlarged(image)[..., :299, :299])
    assert expected.std() > 0.01
    torch.testing.assert_close(small(image), expected, atol=1e-5, rtol=1e-4)
    # Of weights that do not say what network they are of, nothing is folded.
    save_file(small.state_dict(), tmp_path / "foreign.safetensors")
    foreign = start_backbone(
        "inception_v3_151", tmp_path / "foreign.safetensors", num_classes=7, width=0.25
    )
    assert torch.equal(foreign.stem.conv1.conv.weight, small.stem.conv1.conv.weight)
    # And from there on copied, as all others are.
    save_backbone(tmp_path / "small.safetensors", small)
    again = start_backbone(
        "inception_v3_151", tmp_path / "small.safetensors", num_classes=7, width=0.25
    )
    assert torch.equal(again.stem.conv1.conv.weight, small.stem.conv1.conv.weight)


def phases_averaged(values: torch.Tensor) -> torch.Tensor:
    """The means of two by two places."""
    return F.avg_pool2d(values, 2)


def test_an_averaged_kernel_gives_the_mean_of_what_an_enlarged_image_has_there():
    image, first, second = (
        torch.randn(shape, dtype=torch.double)
        for shape in ((2, 3, 12, 12), (4, 3, 3, 3), (5, 4, 3, 3))
    )
    expected = phases_averaged(F.conv2d(enlarged(enlarged(image)), first, stride=2))
    found = F.conv2d(image, average_phases(first, first=True))
    places = found.shape[-1]
    torch.testing.assert_close(found, expected[..., :places, :places])
    expected = phases_averaged(F.conv2d(enlarged(found), second))
    torch.testing.assert_close(F.conv2d(found, average_phases(second)), expected[..., :8, :8])


@torch.no_grad()
def test_layers_for_79_pixels_are_as_strong_as_those_for_299_on_the_enlarged_image(
    tmp_path, caplog
):
    """In mean and deviation of each channel, where the statistics in the file are for neither."""
    save_backbone(tmp_path / "large.safetensors", randomise(small("inception_v3"), seed=0))
    images = photographs(79)
    assert images.float().std() > 30
    moments = {}
    for name, seen in (("inception_v3_79", images), ("inception_v3_151", enlarged(images))):
        with caplog.at_level(logging.INFO):
            model = start_backbone(name, tmp_path / "large.safetensors", num_classes=0, width=0.25)
        assert model.training
        left = moments[name] = []
        for layer in model.eval().modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.register_forward_hook(
                    lambda layer, given, out, left=left: left.extend(
                        (out.mean((0, 2, 3)), out.std((0, 2, 3)))
                    )
                )
        model.forward_features(seen)
    assert "kernels are averaged, and normalisation is matched" in caplog.text
    small_net, large_net = moments.values()
    assert len(small_net) == len(large_net) == 2 * 94
    for own, like in zip(small_net, large_net, strict=True):
        torch.testing.assert_close(own, like, atol=0.01, rtol=0.01)
