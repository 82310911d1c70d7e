"""Words of a command line, brought into the form that the parser of `config` reads."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from backbones.common.errors import UserError


def spell_out(arguments: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Write in full what may be written shortly; values and other words stay as they are.

    `--inputs a b` becomes `--inputs ["a", "b"]` where `inputs` is a list of words, unless it
    begins with a bracket, and `--resume` becomes `--resume true` where `resume` is a bool and no
    value follows.

    Args:
        arguments: of the command line.
        hints: type hints by dotted key.
    """
    written: list[str] = []
    remaining = list(arguments)
    while remaining:
        written.append(remaining.pop(0))
        hint = hints.get(written[-1].removeprefix("--")) if written[-1].startswith("--") else None
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), remaining))
        if hint is bool and not values:
            written.append("true")
        item = next(iter(get_args(hint)), None) if get_origin(hint) is list else None
        if (
            (item is str or get_origin(item) is Literal)
            and values
            and not values[0].startswith("[")
        ):
            remaining = remaining[len(values) :]
            written.append(json.dumps(values))
    return written


def config_file_first(arguments: Sequence[str]) -> list[str]:
    """Move `--config FILE` to the front, so that overrides win wherever it was written.

    Raises:
        UserError: it stands there twice, or without a file.
    """
    files, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config":
            path = next(remaining, None)
            if path is None:
                raise UserError("--config: expected a YAML file after it")
            files.append(path)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if len(files) > 1:
        raise UserError(f"--config: expected one file, got {len(files)}: {', '.join(files)}")
    return [*(["--config", files[0]] if files else []), *rest]
