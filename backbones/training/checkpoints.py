"""Checkpoints for resuming a run: tensors and plain values, beside the weights for use."""

import logging
from pathlib import Path
from typing import Any

import torch

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, set_aside
from backbones.common.torch_files import check_whole

logger = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `step_<step>.pt` atomically, then delete all but the `keep` newest.

    The state is tensors, numbers, strings and containers of them; other objects could not be read
    back. Two are kept, so that one damaged file costs little.
    """
    path = folder / f"step_{step:010d}.pt"
    with atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # As torch reports what the disk refused, which it got as an exception from `file`.
            raise OSError(str(error.__context__ or error).partition("\n")[0]) from error
    for old in _checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_last_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, on the CPU, or None where there is none.

    A damaged one (a disk that filled up, a bad copy, a flipped bit) is passed over with a warning,
    and renamed so that it is not taken for the newest again.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    damaged = []
    for path in _checkpoints(folder):
        try:
            check_whole(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # whatever torch and pickle make of bytes that are not theirs
            reason = str(error).partition("\n")[0] or type(error).__name__
            logger.warning("%s: cannot read checkpoint, trying an older one: %s", path, reason)
            damaged.append((path, reason))
            continue
        for broken, reason in damaged:
            set_aside(broken, reason)
        return state
    if damaged:
        raise UserError(
            f"{folder}: none of the {len(damaged)} checkpoints can be read: "
            "restore one, or delete them to begin anew"
        )
    return None


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one, be it damaged."""
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True)
