"""Whether tensors fit a network: by name, shape and kind of number."""

from collections.abc import Mapping

import torch
from torch import Tensor

from backbones.common.errors import UserError

_COUNTER = ".num_batches_tracked"


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Raise `UserError` unless the tensors of `state` have the names and shapes of `expected`.

    Args:
        expected: of a network, which may be on the meta device.
        state: to be loaded into it. Precision may differ, but a float is no integer; batch
            counters may be absent, see `with_counters`.
        what: beginning of the message, which names the first tensors with both shapes.
    """
    problems = []
    for name in [*expected, *(name for name in state if name not in expected)]:
        if name.endswith(_COUNTER) and name not in state:
            continue
        wanted, found = (
            _describe(tensors[name]) if name in tensors else "nothing"
            for tensors in (expected, state)
        )
        if wanted != found:
            problems.append(f"{name} expected {wanted}, found {found}")
    if problems:
        rest = len(problems) - 3
        more = f"; and {rest} more" if rest > 0 else ""
        raise UserError(f"{what}: {'; '.join(problems[:3])}{more}")


def with_counters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the batch counters that old files lack; with a fixed momentum their value is unused."""
    state = {}
    for name, tensor in state_dict.items():
        state[name] = tensor
        # Where BatchNorm itself keeps the counter: after its running variance.
        counter = name.removesuffix(".running_var") + _COUNTER
        if name.endswith(".running_var") and counter not in state_dict:
            state[counter] = torch.zeros((), dtype=torch.int64, device=tensor.device)
    return state


def _describe(tensor: Tensor) -> str:
    suffix = "" if tensor.is_floating_point() else f" {tensor.dtype}"
    return f"{list(tensor.shape)}{suffix}"
