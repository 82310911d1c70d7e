"""The paper's training recipe: optimiser, schedule, label smoothing, weight averaging.

Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, sections 7
and 8: RMSProp with decay 0.9 and ε = 1.0, learning rate 0.045 decayed by 0.94 every two epochs,
gradient clipping at 2.0, evaluation on a running average of the parameters.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import RMSpropTF, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from backbones.networks.finetuning import layer_scales, scale_groups
from backbones.training.muon import Muon, muon_groups

logger = logging.getLogger(__name__)

_OPTIMIZER_DEFAULTS: dict[str, dict[str, float]] = {
    "rmsprop_tf": {"momentum": 0.9, "decay": 0.9, "eps": 1.0},
    "sgd": {"momentum": 0.9},
    "adamw": {"eps": 1e-8},
    "muon": {"momentum": 0.9},
}
_SCHEDULE_DEFAULTS: dict[str, dict[str, float]] = {
    "staircase": {"decay_rate": 0.94, "decay_epochs": 2.0},
    "cosine": {},
}


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; the defaults are the paper's.

    An option that is null has the default of the chosen optimizer or schedule, see `value`; one
    that does not apply to it is refused.
    """

    optimizer: Literal["rmsprop_tf", "sgd", "adamw", "muon"] = "rmsprop_tf"
    """`rmsprop_tf` is RMSProp as TensorFlow defines it (eps inside the root, accumulator from
    one), which with the paper's eps is another algorithm than PyTorch's; `sgd` has momentum;
    `muon` orthogonalises the momentum and needs the fewest steps from random weights."""
    lr: float = 0.045
    """Learning rate after warm-up, used as it stands unless optim.scale_lr_from says otherwise; the
    paper's 0.045 goes with its batch of 32 a replica."""
    scale_lr_from: int | None = None
    """Images in a step, of all processes, that optim.lr is meant for: the rate used is optim.lr
    times the actual number over this (Goyal et al. 2017), and the log says so. Null uses optim.lr
    as it stands."""
    momentum: float | None = None
    """Momentum of the optimizers rmsprop_tf, sgd and muon; null is 0.9, as in the authors'
    published code (the paper names it for SGD only)."""
    decay: float | None = None
    """Decay of the average of squared gradients of the optimizer rmsprop_tf; null is 0.9."""
    eps: float | None = None
    """What is added to the average of squared gradients (optimizer rmsprop_tf, 1.0 where null) or
    to its root (adamw, 1e-8)."""
    weight_decay: float = 4e-5
    """L2 on weights (decoupled in adamw and muon), not on biases and normalisation; 4e-5 in the
    authors' published code."""
    layer_decay: float | None = None
    """Factor of the learning rate from each block of the network to the one below it, the
    classifier learning at the full rate: for fine-tuning, 0.7 to 0.9; null for one rate. A
    detector's proposer, which starts at random, keeps the full rate."""
    clip_grad: float | None = 2.0
    """Largest norm of the whole gradient, a longer one is shortened to it; null clips nothing."""
    schedule: Literal["staircase", "cosine"] = "staircase"
    """How the learning rate falls: `staircase` multiplies it by optim.decay_rate every
    optim.decay_epochs, `cosine` brings it to zero at last."""
    decay_rate: float | None = None
    """Factor of the learning rate at each stair of the schedule staircase; null is 0.94."""
    decay_epochs: float | None = None
    """Epochs of each stair of the schedule staircase; null is 2."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises in a line from near zero."""
    ema_decay: float | None = 0.9999
    """Decay per step of the running average of the weights that is evaluated and saved; in the n-th
    step it is at most (1 + n) / (10 + n). Null evaluates the raw weights."""

    def __post_init__(self) -> None:
        self._refuse_unused("optimizer", ("momentum", "decay", "eps"), _OPTIMIZER_DEFAULTS)
        self._refuse_unused("schedule", ("decay_rate", "decay_epochs"), _SCHEDULE_DEFAULTS)
        ranges = {
            "(0, inf)": "lr eps clip_grad decay_epochs",
            "[1, inf)": "scale_lr_from",
            "[0, 1)": "momentum decay",
            "[0, inf)": "weight_decay warmup_epochs",
            "(0, 1)": "layer_decay ema_decay",
            "(0, 1]": "decay_rate",
        }
        check_ranges(self, "optim.", ranges)

    def value(self, option: str) -> float:
        """An option of the optimizer or schedule: as set, or its default where that is null."""
        chosen = getattr(self, option)
        if chosen is None:
            chosen = {**_OPTIMIZER_DEFAULTS[self.optimizer], **_SCHEDULE_DEFAULTS[self.schedule]}[
                option
            ]
        return float(chosen)

    def _refuse_unused(
        self, choice: str, options: tuple[str, ...], defaults: dict[str, dict[str, float]]
    ) -> None:
        chosen = getattr(self, choice)
        if chosen not in defaults:
            raise UserError(f"optim.{choice} must be one of {', '.join(defaults)}, got {chosen!r}")
        for option in options:
            if getattr(self, option) is not None and option not in defaults[chosen]:
                raise UserError(
                    f"optim.{option} does not apply to optim.{choice} {chosen!r}: remove it"
                )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters; decay only on those of 2+ dimensions.

    With `layer_decay`, each group has `lr_scale`, by which the caller multiplies its rate.
    """
    if config.optimizer == "muon":
        groups = muon_groups(model, config.weight_decay)
    else:
        groups = param_groups_weight_decay(model, config.weight_decay)
    if config.layer_decay is not None:
        groups = scale_groups(groups, layer_scales(model, config.layer_decay))
    if config.optimizer == "muon":
        return Muon(groups, lr=config.lr, momentum=config.value("momentum"))
    if config.optimizer == "rmsprop_tf":
        return RMSpropTF(
            groups,
            lr=config.lr,
            alpha=config.value("decay"),
            eps=config.value("eps"),
            momentum=config.value("momentum"),
        )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.value("momentum"))
    # fused: one call for all tensors; on CPU the loop over them takes longer than the arithmetic.
    return torch.optim.AdamW(groups, lr=config.lr, eps=config.value("eps"), fused=True)


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The learning rate after warm-up, for so many images in a step of all processes together."""
    if config.scale_lr_from is None:
        return config.lr
    lr = config.lr * global_batch / config.scale_lr_from
    logger.info(
        "learning rate %g: optim.lr %g times %d images a step over optim.scale_lr_from %d",
        *(lr, config.lr, global_batch, config.scale_lr_from),
    )
    return lr


def lr_factor(step: int, config: OptimConfig, steps_per_epoch: int, total_steps: int) -> float:
    """What the learning rate is multiplied by in the step after `step` others."""
    warmup_steps = config.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if config.schedule == "cosine":
        progress = max(0.0, (step - warmup_steps) / max(1.0, total_steps - warmup_steps))
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    # The epsilon keeps rounding in the divisions from delaying a stair by one step.
    decays = math.floor(step / steps_per_epoch / config.value("decay_epochs") + 1e-9)
    return warmup * config.value("decay_rate") ** decays


class RunningAverage(AveragedModel):
    """A running average of the weights, to be fed with `update_parameters(model)` after each step.

    The n-th update uses decay min(decay, (1 + n) / (10 + n)), TensorFlow's warm-up, and the first
    copies. BatchNorm's running statistics are averaged in the same way: they then belong to the
    averaged weights over the same span of steps. Integer buffers are copied.

    torch's own way of updating sends the number of updates to a GPU and would have to wait for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of a step in."""
        updates = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + updates) / (10 + updates)) if updates else 1.0
        pairs = zip(_tensors(self.module), _tensors(model), strict=True)
        floats: list[tuple[Tensor, Tensor]] = []
        others: list[tuple[Tensor, Tensor]] = []
        for pair in pairs:
            (floats if pair[0].is_floating_point() else others).append(pair)
        for averaged, current in others:
            averaged.copy_(current)
        averages, currents = (list(column) for column in zip(*floats, strict=True))
        torch._foreach_lerp_(averages, currents, weight)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def classification_loss(
    output: Tensor | tuple[Tensor, Tensor],
    labels: Tensor,
    label_smoothing: float = 0.1,
    aux_weight: float = 0.3,
) -> dict[str, Tensor]:
    """Cross-entropy with label smoothing, and that of the auxiliary head times its weight.

    Smoothing mixes the one-hot target with the uniform distribution over the K classes, as in the
    paper's section 7: q'(k) = (1 − ε) δ(k, y) + ε / K.

    Args:
        output: logits `[N, K]`, or the pair (logits, auxiliary logits).
        labels: `int64 [N]` in 0..K-1.
        label_smoothing: ε.
        aux_weight: 0.3 is GoogLeNet's (Szegedy et al. 2015).

    Returns:
        `class`, and `aux` where there is an auxiliary head; their sum is the loss.
    """
    if isinstance(output, Tensor):
        logits, aux_logits = output, None
    else:
        logits, aux_logits = output
    losses = {
        "class": functional.cross_entropy(logits, labels, label_smoothing=label_smoothing),
    }
    if aux_logits is not None:
        aux = functional.cross_entropy(aux_logits, labels, label_smoothing=label_smoothing)
        losses["aux"] = aux_weight * aux
    return losses
