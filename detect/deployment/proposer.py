"""The inference form of a learned proposer: the same proposals from cheaper operations."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import Conv2dNormActivation

from backbones.deployment.folding import ConvReLU, fold_conv
from backbones.deployment.onednn import fuse_convolutions
from backbones.deployment.pytorch import DeployPrecision, deploy
from backbones.deployment.surgery import copy_layers
from backbones.networks.inception import InceptionV3
from detect.proposals.learned import LearnedProposer
from detect.proposals.rpn import ProposalHead


def deploy_proposer(proposer: LearnedProposer, precision: DeployPrecision) -> LearnedProposer:
    """A copy of `proposer` for use only, on its device; precision and errors as of `deploy`."""
    trunk = deploy(proposer.trunk, precision)
    deployed = copy_layers(proposer)
    deployed.trunk = cast(InceptionV3, trunk)  # it takes its place
    for blocks in (deployed.pyramid.inner_blocks, deployed.pyramid.layer_blocks):
        for i, block in enumerate(blocks):
            blocks[i] = _folded(block).to(trunk.dtype)
    deployed.pyramid.to(memory_format=torch.channels_last)
    fuse_convolutions(deployed.pyramid)
    assert isinstance(proposer.rpn.head, ProposalHead)
    deployed.rpn.head = DeployedHead(proposer.rpn.head, trunk.dtype)
    return deployed.eval()


def _folded(block: nn.Module) -> nn.Conv2d:
    assert isinstance(block, Conv2dNormActivation)
    conv, bn = block
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(bn, _BatchNorm)
    return fold_conv(conv, bn, nn.Conv2d)


class DeployedHead(nn.Module):
    """A `ProposalHead` for use: a convolution of its own for each level, one for all it predicts.

    Levels are of `dtype`; logits and deltas are computed in `float32`, as 8 bits would place the
    corners of a large box to within a pixel or two.
    """

    def __init__(self, head: ProposalHead, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_anchors = head.cls_logits.out_channels
        norms = [cast(_BatchNorm, norm) for norm in head.norms]
        self.convs = nn.ModuleList(fold_conv(head.conv, norm, ConvReLU) for norm in norms)
        self.convs.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = nn.Conv2d(head.conv.out_channels, self.num_anchors * 5, 1).requires_grad_(False)
        layers = (head.cls_logits.state_dict(), head.bbox_pred.state_dict())
        last.load_state_dict(
            {key: torch.cat([layer[key] for layer in layers]) for key in layers[0]}
        )
        self.last = nn.Sequential(last.to(head.conv.weight.device))
        fuse_convolutions(self.convs)
        fuse_convolutions(self.last)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As `ProposalHead.forward`."""
        predicted = [
            self.last(conv(level).float()) for conv, level in zip(self.convs, features, strict=True)
        ]
        logits, deltas = zip(
            *(level.tensor_split([self.num_anchors], dim=1) for level in predicted), strict=True
        )
        return list(logits), list(deltas)
