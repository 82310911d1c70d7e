"""Tensors and metadata in `.safetensors` files, which hold nothing that could be executed."""

import functools
import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from backbones.common.addresses import without_secrets
from backbones.common.errors import UserError
from backbones.common.files import atomic_write
from backbones.common.read_json import parse_json
from backbones.networks import hub

logger = logging.getLogger(__name__)

_NO_DIGEST = "0" * 64
_HEADER_BYTES = 100_000_000
"""The longest header that safetensors reads."""


def save_weights(
    path: str | os.PathLike[str], state_dict: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a `.safetensors` file, replacing an older one only when the new one is whole.

    Tensors may be on any device and in any memory format; metadata are values that JSON can hold,
    each stored as JSON under its key.

    Raises:
        UserError: a tensor holds NaN or infinity, which `load_weights` would refuse.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    check_finite(path, tensors)
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    data = safetensors.torch.save(tensors, texts | {"digest": _NO_DIGEST})
    own = _digest_entry(hashlib.sha256(data).hexdigest())
    with atomic_write(path) as file:
        file.write(data.replace(_digest_entry(_NO_DIGEST), own, 1))


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors (on the CPU) and metadata of a `.safetensors` file; nothing is executed.

    Metadata that is not JSON, as other programs write it, comes back as the string it is. Of files
    that `save_weights` wrote there is their `digest`, which names what was read. `find_weights`
    says what the path may be.

    Raises:
        UserError: the file is missing, damaged, not safetensors, or a tensor in it holds NaN or
            infinity; the message names it.
    """
    path = find_weights(path)
    with _opened(path) as file:
        texts = file.metadata() or {}
        _check_digest(path, texts.get("digest"))
        if "kind" in texts and "digest" not in texts:
            _say_unchecked(path)
        # Cloned, as the file may be a memory map that changes under the tensors' feet.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = _metadata(file)
    check_finite(path, tensors)
    return tensors, metadata


def check_finite(where: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` for NaN, infinity or a negative variance in tensors from `where`."""
    for name, tensor in tensors.items():
        # In fp32, for the narrowest types have no test of their own.
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(
                f"{where}: tensor {name} holds NaN or infinity: take weights of an earlier "
                "epoch, or train anew with a lower learning rate"
            )
        if name.endswith("running_var") and tensor.numel() and tensor.float().min() < 0:
            raise UserError(f"{where}: tensor {name} holds a variance below 0: it is damaged")


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone, as `load_weights` gives and raises: reads a few kilobytes."""
    with _opened(find_weights(path)) as file:
        return _metadata(file)


def find_weights(path: str | os.PathLike[str]) -> Path:
    """The file itself; of a run folder `best.safetensors`, or where nothing chose
    `last.safetensors`; of `hf-hub:OWNER/NAME[@REVISION]` its `model.safetensors`, downloaded once.
    Raises `UserError` where there is none."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise UserError(f"weights: expected a file, a run folder or {hub.SCHEME}NAME, got {path!r}")
    name = os.fspath(path)
    if name.startswith(hub.SCHEME):
        return hub.download_weights(name)
    path = Path(path)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            shown = without_secrets(name)
            raise UserError(f"{shown}: no such file: expected weights or a run folder")
        return path
    names = ("best.safetensors", "last.safetensors")
    files = [path / name for name in names if os.path.exists(path / name)]
    if not files:
        there = ", ".join(sorted(file.name for file in path.glob("*.safetensors"))) or "none"
        raise UserError(
            f"{path}: neither {names[0]} nor {names[1]} is in this run folder ({there})"
        )
    if files[0].name != names[0]:
        _say_last(files[0], names[0])
    return files[0]


@functools.cache
def _say_last(path: Path, best: str) -> None:
    logger.warning("%s is taken, the end of the training: %s is not there", path, best)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    if Path(path).suffix in (".onnx", ".xml"):
        raise UserError(f"{path}: an exported file: name the .safetensors that it was made from")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable .safetensors file: {error}") from error


def _metadata(file: Any) -> dict[str, Any]:
    texts = dict(file.metadata() or {})
    return {key: text if key == "digest" else _parse(text) for key, text in texts.items()}


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


@functools.cache
def _say_unchecked(path: str | os.PathLike[str]) -> None:
    logger.info("%s: has no digest, so that damage to it would go unnoticed", path)


def _check_digest(path: str | os.PathLike[str], digest: str | None) -> None:
    """Raise `UserError` unless the file has the digest that it names, where it names one.

    It is that of the whole file with zeros in its own place, so that it speaks for names, shapes
    and metadata too.
    """
    if digest is None:  # of another program, or of an earlier version of this
        return
    with open(path, "rb") as file:
        prefix = file.read(8)
        header = file.read(min(*struct.unpack("<Q", prefix), _HEADER_BYTES))
        header = header.replace(_digest_entry(digest), _digest_entry(_NO_DIGEST), 1)
        found = hashlib.sha256(prefix + header)
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != digest:
        raise UserError(f"{path}: damaged: its content has another digest than it was written with")


def _digest_entry(digest: str) -> bytes:
    """As it stands in the header: inside of other texts its quotes would be escaped."""
    return f'"digest":"{digest}"'.encode()
