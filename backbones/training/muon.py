"""Muon: momentum whose update is orthogonalised, which trains from scratch in far fewer steps."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Jordan's quintic: pushes every singular value towards 1, the small ones fastest."""

NEWTON_SCHULZ_STEPS = 3
"""Each multiplies small singular values by 3.4; more of them trained no better here."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups with `orthogonalize`, AdamW for the others.

    A convolution's gradient is dominated by a few directions; moving along the nearest orthogonal
    matrix instead lets the weak ones learn as fast. It suits weights whose scale does not matter
    because normalisation follows, see `muon_groups`. A weight is taken as the matrix
    `[out, everything else]`; its update has a root mean square near 1 times the learning rate, as
    AdamW's first steps have, so that one learning rate serves both.

    `torch.optim.Muon` refuses convolutions, and both it and timm's compute in bf16, which takes
    seven times as long on processors without instructions for it (docs/results.md). Here tensors of
    one shape go through the iteration together, in fp32. Momentum is used in Nesterov's way.
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float = 0.9) -> None:
        # torch moves AdamW's step counts to the weights' device only for groups that say `fused`.
        defaults = {"momentum": momentum, "weight_decay": 0.0, "orthogonalize": False}
        defaults |= {"lr": lr, "fused": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            if group["orthogonalize"]:
                self._step_orthogonal(group)
            else:
                self._step_adamw(group)

    def _step_adamw(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                    "step": torch.zeros((), device=weight.device),
                }
        adamw(
            weights,
            [weight.grad for weight in weights],
            [self.state[weight]["exp_avg"] for weight in weights],
            [self.state[weight]["exp_avg_sq"] for weight in weights],
            [],
            [self.state[weight]["step"] for weight in weights],
            fused=group["fused"],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )

    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {"momentum": torch.zeros_like(weight)}
        gradients = [weight.grad for weight in weights]
        averages = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, weight in enumerate(weights):
            by_shape[len(weight), weight[0].numel()].append(i)
        for (rows, columns), places in by_shape.items():
            updates = [
                gradients[i].lerp(averages[i], group["momentum"]).reshape(rows, columns)
                for i in places
            ]
            directions = orthogonalize(torch.stack(updates)) * math.sqrt(max(rows, columns))
            for i, direction in zip(places, directions, strict=True):
                weights[i].mul_(1 - group["lr"] * group["weight_decay"])
                weights[i].add_(direction.view(weights[i].shape), alpha=-group["lr"])


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices `[N, rows, columns]` with their singular vectors, and singular values nearer to 1.

    Newton-Schulz iteration on the matrix over its Frobenius norm: singular values above a tenth of
    that norm end between 0.6 and 1.3, smaller ones grow up to forty-fold, and zero stays zero.
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of a model for `Muon`.

    Convolutions without bias, which normalisation follows, are orthogonalised. Heads and other
    weights whose scale matters are AdamW's, and vectors do not decay.
    """
    normalised = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.bias is None
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = [parameter for parameter in trainable if id(parameter) not in normalised]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) in normalised], "orthogonalize": True},
        {"params": [p for p in rest if p.ndim > 1]},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [{"weight_decay": weight_decay, **group} for group in groups if group["params"]]
