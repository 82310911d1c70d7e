"""Small trained detectors that come with the package, to start others from: see README.md here."""

import os
from pathlib import Path

from backbones.common.errors import UserError
from backbones.networks.weights import find_weights

SCHEME = "starter:"


def find_detector(path: str | os.PathLike[str]) -> Path:
    """The file of a detector: `starter:NAME` comes with the package, the rest is as in
    `find_weights`.

    Raises:
        UserError: there is none.
    """
    if not (isinstance(path, str) and path.startswith(SCHEME)):
        return find_weights(path)
    name = path.removeprefix(SCHEME)
    files = {file.stem: file for file in Path(__file__).parent.glob("*.safetensors")}
    if name not in files:
        known = ", ".join(SCHEME + known for known in sorted(files))
        raise UserError(f"{path}: no such starter: there is {known}")
    return files[name]
