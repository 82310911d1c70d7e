"""What somebody has changed of the texts that `infer` wrote, such as labels that were corrected."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from backbones.common.errors import UserError
from backbones.common.regular_files import read_file

DIGITS = 16
"""Of a digest, see `digest`."""


def digest(text: bytes) -> str:
    """What tells a text that `infer` wrote from one that was changed since."""
    return hashlib.sha256(text).hexdigest()[:DIGITS]


def texts_of_lists(document: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what `images.json` says that the lists beside it hold; none where it was cut short
    between these and itself."""
    return dict(document.get("lists", {})) if document.get("lists_agree") is True else {}


def check_unchanged(output: Path, texts: Iterable[Mapping[str, str]], what: str) -> None:
    """See that nobody's corrections are lost.

    Args:
        output: the folder.
        texts: digests of what was written, by the paths of the files; any may be there.
        what: would be done to the files, for the message.

    Raises:
        UserError: a file is neither gone nor as it was written.
    """
    written = defaultdict[str, list[str]](list)
    for name, own in chain.from_iterable(some.items() for some in texts):
        written[name].append(own)
    changed = [output / name for name in sorted(written) if _differs(output / name, written[name])]
    if changed:
        raise UserError(
            f"{changed[0]}: was changed since infer wrote it (such files: {len(changed)}), and "
            f"{what} it: move it away, or choose another output"
        )


def _differs(path: Path, digests: Collection[str]) -> bool:
    try:
        return os.path.isfile(path) and digest(read_file(path)) not in digests
    except OSError as error:
        raise UserError(f"{path}: cannot read file: {error.strerror or error}") from error
