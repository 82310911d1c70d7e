"""What timm's tools ask of a network besides `forward`, of one made of a stem and Inception stages.

Methods, arguments and results are those of timm's own networks, whose conventions for features,
layer-wise learning rates and memory other programs rely on.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, get_args

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models._features import feature_take_indices  # as its own networks do
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from backbones.networks.blocks import AuxiliaryHead, init_weights
from backbones.networks.specs import BackboneSpec, GlobalPool

PARTS = ("stem", "stage_a", "reduction_a", "stage_b", "reduction_b", "stage_c")
"""The network up to its last map, first to last."""


class TimmMethods(nn.Module):
    """The methods; the networks are in `backbones.networks.inception`."""

    spec: BackboneSpec
    num_classes: int
    dropout: float
    num_features: int
    """Channels of the last map."""
    feature_info: list[dict[str, Any]]
    """`module`, `num_chs` and `reduction` of each map that can be taken, from the first on."""
    fc: nn.Module
    aux: str
    aux_head: AuxiliaryHead | None
    grad_checkpointing = False

    def prepare(self, x: Tensor) -> Tensor:
        """Images as the stem takes them; each network has its own."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare(x)")

    @property
    def head_hidden_size(self) -> int:
        """Numbers of an image that the classifier takes; some poolings double those of the map."""
        return self.num_features * self.global_pool.feat_mult()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, drop and classify a map `[N, num_features, h, w]` into `[N, num_classes]`.

        With `pre_logits` what the classifier takes, `[N, head_hidden_size]`.
        """
        x = nn.functional.dropout(self.global_pool(x), self.dropout, self.training)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """The last layer: a `Linear`, or an `Identity` without classes."""
        return self.fc

    def set_head(self, num_classes: int, global_pool: str) -> None:
        """Put on a pooling and a classifier as PyTorch makes it; raises as `reset_classifier`."""
        # As timm writes it into the description of a network that it pushes to the hub.
        global_pool = global_pool.removeprefix("fast")
        if global_pool not in get_args(GlobalPool):
            raise ValueError(
                f"global_pool must be one of {get_args(GlobalPool)}, got {global_pool!r}"
            )
        if num_classes and not global_pool:
            raise ValueError(
                "global_pool '' leaves a map, which has no classifier: set num_classes to 0, or "
                "global_pool to 'avg'"
            )
        self.num_classes = num_classes
        # timm's `fast` ones are a mean and a maximum, which inference forms and exports know.
        kind = f"fast{global_pool}" if global_pool else ""
        self.global_pool = SelectAdaptivePool2d(pool_type=kind, flatten=bool(global_pool))
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier for `num_classes` on; the auxiliary head gets one too.

        With 0 the auxiliary head comes off altogether, as it has nothing left to predict.

        Args:
            num_classes: 0 for none.
            global_pool: `avg`, `max`, `avgmax` (their mean), `catavgmax` (both, one after the
                other), or an empty string for the map itself; None leaves it as it is.

        Raises:
            ValueError: an argument out of range, or classes without pooling.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {num_classes}")
        pool = self.global_pool.pool_type.removeprefix("fast")
        like = next(self.parameters())
        self.set_head(num_classes, pool if global_pool is None else global_pool)
        init_weights(self.fc.to(like).train(self.training))
        if num_classes == 0:
            self.aux, self.aux_head = "none", None
        if self.aux_head is not None:
            self.aux_head.reset_classifier(num_classes)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map and those on the way that `feature_info` lists; without auxiliary head.

        Args:
            x: as in `forward`.
            indices: places in `feature_info`, negative ones from its end; a number for so many of
                the last; None for all.
            norm: of no effect, as there is no last normalisation.
            stop_early: compute nothing after the last of these; the last map is then that one.
            output_fmt: `NCHW`.
            intermediates_only: return the list of these alone, without the last map before it.

        Raises:
            ValueError: images that `forward` refuses, or another format.
            AssertionError: indices out of range (as timm's networks do).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        wanted = {self.feature_info[i]["module"] for i in taken}
        x, maps = self.prepare(x), []
        for name in self._steps():
            x = self.through(self.get_submodule(name), x)
            if name in wanted:
                maps.append(x)
            if stop_early and name == self.feature_info[last]["module"]:
                break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Take off what comes after the last of some maps, for use as a feature extractor.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: of no effect.
            prune_head: take off pooling and classifier too, which go with any layer before them.

        Returns:
            The places in `feature_info` that are meant, none negative.

        Raises:
            AssertionError: indices out of range (as timm's networks do).
        """
        taken, last = feature_take_indices(len(self.feature_info), indices)
        steps, info = self._steps(), self.feature_info[last]
        rest = steps[steps.index(info["module"]) + 1 :]
        for name in rest:
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent), child, nn.Identity())
        self.num_features = info["num_chs"]
        if prune_head or rest:
            self.reset_classifier(0, "")
        return taken

    def _steps(self) -> list[str]:
        """Modules that make the maps of `feature_info`, and all between."""
        stem = [f"stem.{name}" for name, _ in self.get_submodule("stem").named_children()]
        return [*stem, *PARTS[1:]]

    def block_names(self, coarse: bool = False) -> list[str]:
        """The stem, each block and each reduction, first to last; `coarse` keeps stages whole."""
        names: list[str] = []
        for name in PARTS:
            blocks = self.get_submodule(name).named_children() if name.startswith("stage") else ()
            names += [name] if coarse or not blocks else [f"{name}.{child}" for child, _ in blocks]
        return names

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Gives by a parameter's name its index in `block_names`, or infinity for heads."""
        blocks = self.block_names(coarse)
        return lambda name: next(
            (i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), math.inf
        )

    def no_weight_decay(self) -> set[str]:
        """None but the vectors, which timm's optimizers and ours leave out by themselves."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep in training only what enters each of `PARTS`, and compute the rest twice.

        Gradients and statistics of batches are the same; memory is less, and a step takes longer.
        """
        self.grad_checkpointing = enable

    def through(self, part: nn.Module, x: Tensor) -> Tensor:
        """What `part` makes of `x`, see `set_grad_checkpointing`."""
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return part(x)
        return checkpoint(
            *(part, x),
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in it is random
            context_fn=lambda: (nullcontext(), _statistics_kept(part)),
        )


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Normalise by the batch without recording its statistics, as has been done the first time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
