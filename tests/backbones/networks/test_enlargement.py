import logging

import pytest
import torch
from helpers.trained_network import fill_statistics
from safetensors.torch import save_file
from torch.nn import functional as F

from backbones import create_backbone, save_backbone, start_backbone
from backbones.networks.enlargement import fold_enlargement


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
