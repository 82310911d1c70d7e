"""Words of a command line, brought into the form that the parser of `config` reads."""

import difflib
import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from backbones.common.errors import UserError
from backbones.common.read_yaml import DECIMAL, read_yaml

_ROOT = Path(__file__).parents[2]

logger = logging.getLogger(__name__)


def check_once(arguments: Sequence[str], hints: Mapping[str, Any]) -> None:
    """Raise `UserError` for a key that is given twice: one value would be lost without a word.

    Args:
        arguments: as the user wrote them.
        hints: as of `spell_out`; a list of words may be given in parts, as may `--config`.
    """
    given = Counter(word.partition("=")[0] for word in arguments if word.startswith("--"))
    for option, count in given.items():
        may_be_more = option == "--config" or _is_list_of_words(hints.get(option[2:]))
        key = option[2:]
        leaf = next((name for name in hints if key.startswith(f"{name}.")), None)
        if leaf is not None and not _is_mapping(hints[leaf]):
            raise UserError(f"{option}: there is no such key: --{leaf} takes the value itself")
        if count > 1 and not may_be_more and not option.endswith("+"):
            raise UserError(f"{option} stands {count} times: it takes one value, once")


def check_numbers(arguments: Sequence[str], hints: Mapping[str, Any]) -> None:
    """Raise `UserError` for a number that YAML, as which it will be read, takes for another."""
    for word, following in itertools.pairwise([*arguments, ""]):
        option, equals, value = word.partition("=")
        value, hint = value if equals else following, hints.get(option.removeprefix("--"))
        if option == word.lstrip("-") or not {int, float} & _types_in(hint):
            continue
        for one in re.split(r"[\[\]{}, ]+", value):
            if re.match(r"[-+]?\d[\d_:x.]*$", one) and not DECIMAL.fullmatch(one):
                raise UserError(f"{option}: expected a number in decimal digits, got {one}")


def _types_in(hint: Any) -> set[Any]:
    return {hint}.union(*map(_types_in, get_args(hint)))


def spell_out(arguments: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Write in full what may be written shortly; values and other words stay as they are.

    `--inputs a b` becomes `--inputs ["a", "b"]` where `inputs` is a list of words, unless it
    stands in brackets, a second `--inputs c` adds to the first, and `--resume` becomes
    `--resume true` where `resume` may be a bool and no value follows. `hints` are type hints by
    dotted key. Raises `UserError` for a key without a value.
    """
    written: list[str] = []
    remaining = list(arguments)
    while remaining:
        option, equals, value = remaining.pop(0).partition("=")
        key = option.removeprefix("--")
        # What is below a leaf is a key of its mapping.
        hint = hints.get(key, hints.get(key.partition(".")[0])) if key != option else None
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), remaining))
        if _is_list_of_words(hint) and (equals or values):
            remaining = remaining[0 if equals else len(values) :]
            values = [value] if equals else values
            is_first = option not in written
            written += [option if is_first else f"{option}+"]
            is_list = len(values) == 1 and re.fullmatch(r"\[.*\]", values[0], re.DOTALL)
            written += values if is_list else [json.dumps(values)]
            continue
        written.append(f"{option}{equals}{value}")
        if equals or values or hint is None:
            continue
        if hint is not bool and bool not in get_args(hint):
            raise UserError(f"{option}: expected a value after it")
        written.append("true")
    return written


def _is_mapping(hint: Any) -> bool:
    kinds = (get_origin(one) or one for one in (hint, *get_args(hint)))
    return any(isinstance(kind, type) and issubclass(kind, Mapping) for kind in kinds)


def _is_list_of_words(hint: Any) -> bool:
    item = next(iter(get_args(hint)), None) if get_origin(hint) in (list, tuple) else None
    return item is str or get_origin(item) is Literal


def config_files_first(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """Move each `--config FILE` to the front, so that overrides win wherever it was written.

    Of several files the later ones win. A name in place of a file is that of a configuration that
    comes with this package; those with other keys than the tool's dotted `keys` are not offered.

    Raises:
        UserError: nothing follows a `--config`, or what is neither a file nor a name.
    """
    files, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--config" or argument.startswith("--config="):
            name = argument[9:] if "=" in argument else next(remaining, "")
            files += ["--config", _config_file(name, keys)]
        else:
            rest.append(argument)
    return files + rest


def arguments_of_run(name: str, known: Collection[str], default: str, *, must: bool) -> list[str]:
    """The arguments that stand for the configuration of the run that is to be resumed.

    It is the one that is named, else the newest beside the `default` one whose keys are all among
    those `known`, dotted. None where there is no run.

    Raises:
        UserError: there `must` be one.
    """
    run = Path(name)
    what = f"{run} holds no run (it has no config.yaml)"
    if name == default:
        runs = [
            path.parent
            for path in run.parent.glob("*/config.yaml")
            if read_yaml(path).keys() <= {key.partition(".")[0] for key in known}
        ]
        what = f"{run.parent}{os.sep} has no folder with the config.yaml of a run of this kind"
        run = max(runs, key=lambda path: (path / "config.yaml").stat().st_mtime, default=run)
    if os.path.isfile(run / "config.yaml"):
        logger.info("resuming %s", run)
        written = {*_dotted(read_yaml(run / "config.yaml"))}
        if absent := sorted({*known} - written):
            logger.warning(
                "%s: has no %s%s, of which the defaults are taken: was it cut off?",
                *(run / "config.yaml", ", ".join(absent[:4]), ", ..." * (len(absent) > 4)),
            )
        # Behind it the folder's name, which may have changed since the file was written.
        return ["--config", str(run / "config.yaml"), f"--run={run}"]
    if not must:
        return []
    raise UserError(f"--resume: {what}: name the folder of one with --run")


def configurations() -> dict[str, Path]:
    """The YAML files that come with this package by name: in its wheel, or else the checkout's."""
    shipped = _ROOT / "detect" / "configs"
    folder = shipped if os.path.isdir(shipped) else _ROOT / "configs"
    return {path.stem: path for path in sorted(folder.rglob("*.yaml"))}


def _config_file(name: str, keys: Collection[str]) -> str:
    if os.path.isfile(name):
        return name
    known = configurations()
    if name in known:
        return str(known[name])
    fitting = [each for each, path in known.items() if set(_dotted(read_yaml(path))) <= set(keys)]
    if not name or name.startswith("--"):
        raise UserError(f"--config: expected a YAML file after it, or one of {', '.join(fitting)}")
    stem = Path(name).stem
    near = difflib.get_close_matches(stem, fitting, n=1)
    raise UserError(
        f"--config {name}: there is no such file"
        + (f": did you mean --config {near[0]}?" if near else ":")
        + (f" Configurations known by name are {', '.join(fitting)}" if fitting else " name a file")
    )


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
