"""Weights in half precision and in files of a bounded size, to be carried over a narrow way."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.networks.weights import load_weights, save_weights


def save_half(source: Path, target: Path, most_bytes: int) -> list[Path]:
    """Write the weights of a file as `fp16`, in as many files as it takes, with its metadata.

    Args:
        source: a `.safetensors` file.
        target: what to write; of several files `-1`, `-2`, ... are added to the name.
        most_bytes: of a file.

    Returns:
        The files.
    """
    state, metadata = load_weights(source)
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        half = tensor.half() if tensor.dtype == torch.float32 else tensor
        # Names and metadata are a header in each file.
        if size + half.nbytes > most_bytes - 200_000:
            parts.append({})
            size = 0
        parts[-1][name] = half.contiguous()
        size += half.nbytes
    paths = [target]
    if len(parts) > 1:
        paths = [target.with_stem(f"{target.stem}-{n}") for n in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        save_weights(path, part, metadata)
    return paths


def join_half(paths: Sequence[Path]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Weights `float32` and metadata of the files that `save_half` wrote."""
    joined: dict[str, Tensor] = {}
    metadata: Mapping[str, Any] = {}
    for path in paths:
        state, metadata = load_weights(path)
        joined |= {k: t.float() if t.dtype == torch.float16 else t for k, t in state.items()}
    return joined, metadata
