"""What a network costs in arithmetic."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_multiply_adds(model: nn.Module, size: int) -> int:
    """Multiply-adds of convolutions and linear layers for one image `[3, size, size]`.

    Counted as papers do, one for a multiplication with its addition. The model runs once as it is,
    so put it in eval mode first: in training it has an auxiliary head to pay for.
    """
    like = next(model.parameters())
    image = torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2
