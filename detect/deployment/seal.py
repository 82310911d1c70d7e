"""A digest at the end of an exported file: an entry or a comment that its format allows there."""

import hashlib
import re
from pathlib import Path

from backbones.common.errors import UserError
from backbones.common.regular_files import read_file

KEY = "sha256"
"""Of ONNX's metadata: the digest of all bytes before this entry, which is the last one."""

# Field 14, `metadata_props`, of 76 bytes: a key of 6, and a value of 66 that is JSON, as all are.
_ENTRY = b"\x72\x4c\x0a\x06" + KEY.encode() + b'\x12\x42"%s"'
_COMMENT = b"<!-- sha256 %s, with the weights -->\n"


def seal_onnx(data: bytes) -> bytes:
    """The bytes of an ONNX file, with their digest behind them."""
    return data + _ENTRY % _digest(data)


def seal_openvino(path: Path) -> None:
    """Write the digest of an `.xml` and of the `.bin` beside it behind the first."""
    data = path.read_bytes()
    path.write_bytes(data + _COMMENT % _digest(data, path.with_suffix(".bin").read_bytes()))


def check_seal(path: Path) -> bool:
    """Whether there is a digest, as later exports have; raises `UserError` where it is another."""
    data = read_file(path)
    form = _ENTRY if path.suffix == ".onnx" else _COMMENT
    length = len(form % bytes(64))
    before, seal = data[:-length], data[-length:]
    found = re.fullmatch(re.escape(form).replace(b"%s", b"([0-9a-f]{64})"), seal)
    if found is None:
        return False
    weights = path.with_suffix(".bin")
    parts = [before, *([read_file(weights)] if path.suffix == ".xml" else [])]
    if _digest(*parts) != found[1]:
        raise UserError(f"{path}: damaged, its digest is another: copy or export it again")
    return True


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()
