"""Tensors and metadata in `.safetensors` files, which hold nothing that could be executed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.files import atomic_write


def save_weights(
    path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a `.safetensors` file, replacing an older one only when the new one is whole.

    Args:
        path: the file to write.
        state_dict: tensors by name, on any device and in any memory format.
        metadata: values that JSON can hold, each stored as JSON under its key.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    data = safetensors.torch.save(tensors, texts)
    with atomic_write(path) as file:
        file.write(data)


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and metadata of a `.safetensors` file; nothing is executed.

    Metadata that is not JSON, as other programs write it, comes back as the string it is.

    Raises:
        UserError: the file is missing, damaged, or not safetensors; the message names it.
    """
    with _opened(path) as file:
        # Cloned, as the file may be a memory map that changes under the tensors' feet.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        texts = file.metadata() or {}
    return tensors, {key: _parse(text) for key, text in texts.items()}


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone, as `load_weights` gives it: reads a few kilobytes.

    Raises:
        UserError: as `load_weights`.
    """
    with _opened(path) as file:
        return {key: _parse(text) for key, text in (file.metadata() or {}).items()}


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if not Path(path).is_file():
        if Path(path).is_dir():
            found = ", ".join(sorted(file.name for file in Path(path).glob("*.safetensors")))
            raise UserError(f"{path}: this is a folder: name the file in it ({found or 'none'})")
        raise UserError(f"{path}: no such file: expected a .safetensors file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable .safetensors file: {error}") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
