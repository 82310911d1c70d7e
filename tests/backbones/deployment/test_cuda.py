"""What a GPU is given computes the same, on any device; cuDNN's part needs one."""

import pytest
import torch
from helpers.trained_network import images, trained

from backbones.deployment import cuda
from backbones.deployment.folding import ConvReLU, fold_batch_norm
from backbones.deployment.pytorch import DeployedInception


@pytest.mark.parametrize("name", ["inception_v3_79", "inception_v2", "inception_v3_79_table1"])
@torch.no_grad()
def test_merged_and_pooled_networks_compute_the_same(name):
    model = trained(name)
    network = DeployedInception(fold_batch_norm(model), torch.float32, adapts=False)
    plain = sum(isinstance(layer, ConvReLU) for layer in network.modules())
    cuda.pool_sums(network)
    cuda.merge_entries(network)
    raw, normalized = images(model)
    torch.testing.assert_close(network(raw), model(normalized), rtol=1e-3, atol=1e-3)
    # Of three sibling convolutions one is left, of two too; the pooled branch's sums are none.
    blocks = [layer for layer in network.modules() if isinstance(layer, cuda.MergedBlock)]
    pooled = sum(isinstance(layer, cuda.AveragedConvReLU) for layer in network.modules())
    saved = sum(len(block.channels) - 1 for block in blocks)
    left = sum(isinstance(layer, ConvReLU) for layer in network.modules())
    assert left == plain - saved - pooled
    assert len(blocks) == pooled + 1  # the second reduction pools without a convolution


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_fused_convolutions_compute_the_same():
    model = trained("inception_v3_79").cuda()
    network = DeployedInception(fold_batch_norm(model), torch.float32)
    assert any(isinstance(layer, cuda.CudnnConvReLU) for layer in network.modules())
    raw, normalized = images(model)
    expected = model(normalized.cuda())
    torch.testing.assert_close(network(raw.cuda()), expected, rtol=1e-2, atol=1e-2)
