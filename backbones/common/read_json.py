"""JSON that others wrote: what cannot be meant is refused where it is read."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from backbones.common.errors import UserError
from backbones.common.regular_files import read_file

_SUSPECT = r"\\u(0000|[dD][89a-fA-F])"
"""Only an escape can stand for a surrogate or a NUL: raw ones are neither UTF-8 nor JSON."""


def read_json(
    path: str | os.PathLike[str],
    what: str = "file",
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """What a JSON file of a user holds; messages call it `what`: `annotations`, `results`.

    Raises:
        UserError: the file cannot be read, or is refused as by `parse_json`.
    """
    try:
        return parse_json(read_file(path).decode("utf-8-sig"), object_hook)
    except OSError as error:
        raise UserError(f"{path}: cannot read {what}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {what}: expected JSON, cannot parse it: not UTF-8") from error
    except ValueError as error:
        raise UserError(f"{path}: {what}: expected JSON, cannot parse it: {error}") from error


def parse_json(
    text: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The value that a JSON text stands for. Numbers in it may be NaN and infinite (`1e400`): who
    uses one can say which entry it belongs to.

    Raises:
        ValueError: not JSON, nested too deeply, a key that an object has twice, an integer of more
            than 64 bits, or a string with half of a surrogate pair or a NUL, which nothing can be
            named.
    """

    def entry_of(pairs: list[tuple[str, Any]]) -> Any:
        entry = dict(pairs)
        if len(entry) < len(pairs):  # json alone would take the last
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key in counts if counts[key] > 1)
            raise ValueError(f"key {twice[:40]!r} stands twice in an object, keep one")
        return entry if object_hook is None else object_hook(entry)

    try:
        value = json.loads(text, object_pairs_hook=entry_of, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if re.search(_SUSPECT, text if isinstance(text, str) else text.decode("latin-1")):
        _check_strings(value)
    return value


def _integer(text: str) -> int:
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**63:
        return number
    raise ValueError(f"{text[:24]} has more digits than integers have, {len(text)}")


def _check_strings(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_strings(key)
            _check_strings(item)
    elif isinstance(value, list):
        for item in value:
            _check_strings(item)
    elif isinstance(value, str):
        check_text(value)


def check_text(text: str) -> None:
    """Raise `ValueError` for half of a surrogate pair or a NUL: libraries in C do not bear them."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{text[:40]!r} holds a character that cannot be written")
