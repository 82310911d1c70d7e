"""Typed configuration: dataclasses filled from one YAML file plus dotted command-line overrides."""

import dataclasses
import itertools
import logging
import math
import os
import re
import sys
import types
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from backbones.common.arguments import (
    arguments_of_run,
    check_numbers,
    check_once,
    config_files_first,
    spell_out,
)
from backbones.common.cli import exit_with_error
from backbones.common.errors import UserError
from backbones.common.files import atomic_write
from backbones.common.help import HelpFormatter, in_words, meant_keys, show_only
from backbones.common.read_yaml import MAX_VALUES, check_string
from backbones.common.read_yaml import read_yaml as read_yaml  # also for those who import it here

Config = TypeVar("Config")

logger = logging.getLogger(__name__)

_LARGEST = 2**53
"""Up to it whole numbers are the same as floats."""


def parse_config(
    config_class: type[Config],
    argv: list[str] | None = None,
    description: str | None = None,
    usual: str = "",
) -> Config:
    """Read a configuration from the command line.

    `--config FILE.yaml`, or several, is applied first wherever it stands, then `--key value` and
    `--group.key value` in their order. A list of strings may be written as several values,
    `--inputs a.jpg b.jpg`, a key that is true or false without its `true`, and a group whose class
    has `SHORT` with one value for all of its keys there. A run that is resumed, `--run RUN
    --resume`, has its own `RUN/config.yaml` where no other is named; without `--run` it is the
    newest. `--help-all` explains every key from the string below the dataclass field. A mistake
    prints one line to stderr that names the key and what was expected, and exits with code 2.

    Args:
        config_class: a dataclass; fields may be dataclasses themselves, or tuples of them.
        argv: arguments without the program name; None takes those of the process.
        description: what the tool does and how it is called, for `--help`.
        usual: keys that `--help` explains, with spaces between them; all where there are none.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        for word in arguments:
            if not word.isprintable() and os.fsencode(word) != word.encode("utf-8", "replace"):
                name = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                raise UserError(f"{name}: no UTF-8: rename it, or name its folder or a pattern")
            _check_value("command line", word)
            _check_value("command line", word.partition("=")[2])
        hints = _leaf_hints(config_class)
        check_once(arguments, hints)
        check_numbers(arguments, hints)
        arguments = _in_groups(config_class, arguments)
        arguments = config_files_first(spell_out(arguments, hints), hints.keys())
        parser = _parser(config_class, description)
        if "--help-all" in arguments:
            arguments = ["--help"]
        elif usual and {"-h", "--help"} & {*arguments}:
            show_only(parser, usual.split())
        values = _parse(config_class, parser, arguments)
        if "run" in values and values.get("resume") and arguments[:1] != ["--config"]:
            must, default = values["resume"] != "auto", parser.get_default("run")
            arguments = arguments_of_run(values["run"], hints, default, must=must) + arguments
            try:
                values = _parse(config_class, parser, arguments)
            except UserError as error:
                mend = "if it is damaged, restore it or name the configuration with --config"
                raise UserError(f"{error}: {mend}") from error
        return _build(config_class, values, "")
    except UserError as error:
        exit_with_error(error)


def _in_groups(config_class: type, arguments: Sequence[str]) -> list[str]:
    """Spell out groups that take a value, `--data PATH` as `--data.root PATH` and what it implies.

    What it implies stands first, so that the keys themselves win.

    Raises:
        UserError: another group is given a value, which would be read as a file.
    """
    written = list(arguments)
    for name, hint in get_type_hints(config_class).items():
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            continue
        places = [i for i, word in enumerate(written) if word.split("=")[0] == f"--{name}"]
        if not places:
            continue
        short: Mapping[str, str | None] = getattr(hint, "SHORT", {})
        if not short:
            keys = [f"--{name}.{field.name}" for field in dataclasses.fields(hint)]
            raise UserError(
                f"--{name} is a group of keys and takes no value: set {', '.join(keys[:4])}"
                f"{' and others' * (len(keys) > 4)}, see --help-all"
            )
        place = places[0]
        word, _, value = written.pop(place).partition("=")
        if not value:
            if place == len(written) or not written[place] or written[place].startswith("--"):
                raise UserError(f"{word}: expected a value after it")
            value = written.pop(place)
            if written[place:] and not written[place].startswith("-"):
                raise UserError(f"{word} takes one value: {written[place]!r} is a second one")
        named = [f"--{name}.{key}" for key, implied in short.items() if implied is None]
        if twice := [key for key in named if {key} & {one.split("=")[0] for one in written}]:
            raise UserError(f"{word} sets {twice[0]}, which stands beside it: give one of them")
        given = [(key, value if implied is None else implied) for key, implied in short.items()]
        written = [f"--{name}.{key}={text}" for key, text in given] + written
    return written


def load_config(config_class: type[Config], path: str | os.PathLike[str]) -> Config:
    """The configuration that `save_config` wrote; missing keys take their defaults.

    Raises:
        UserError: as `read_yaml` and `from_dict`.
    """
    return from_dict(config_class, read_yaml(path), where=os.fspath(path))


def from_dict(
    config_class: type[Config], values: Mapping[str, Any], *, where: str = "configuration"
) -> Config:
    """The configuration that `to_dict` was given; missing keys take their defaults.

    Args:
        config_class: as for `parse_config`.
        values: nested as the dataclasses are.
        where: they come from, to be named with an unknown key.

    Raises:
        UserError: an unknown key, a value of the wrong type, or far too many of them.
    """
    _check(config_class, values, where)
    parser = _parser(config_class, "")
    try:
        namespace = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise UserError(_one_line(error)) from error
    return _build(config_class, namespace, "")


def as_base(config: Any, base: type[Config], **changes: Any) -> Config:
    """A configuration as the dataclass that its own extends, with other values for some keys."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    return base(**(values | changes))


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, lists, numbers and strings, fit for YAML and JSON."""
    return {
        field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested dicts, as `to_dict` gives them, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save_config(path: str | os.PathLike[str], config: Any) -> None:
    """Write a configuration as YAML that `--config` reads back."""
    with atomic_write(path, "w") as file:
        yaml.safe_dump(to_dict(config), file, sort_keys=False, allow_unicode=True)


def _leaf_hints(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Type hints of all keys by dotted name, of those in groups too."""
    hints = get_type_hints(config_class)
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            leaves |= _leaf_hints(hint, f"{name}.")
        else:
            leaves[name] = hint
    return leaves


def _parser(config_class: type, description: str | None) -> ArgumentParser:
    # One setting for the whole process, so not touched before a configuration is read.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
        description=description,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the keys, or the name of one that comes with this package; of "
        "several the later ones win.",
    )
    parser.add_class_arguments(config_class)
    options = parser._option_string_actions
    for name, hint in get_type_hints(config_class).items():
        for key in (key for key, value in getattr(hint, "SHORT", {}).items() if value is None):
            options[f"--{name}"].help = options[f"--{name}.{key}"].help
            options[f"--{name}"].metavar = "PATH"
    return parser


def _parse(config_class: type, parser: ArgumentParser, arguments: list[str]) -> Namespace:
    for option, path in itertools.pairwise(arguments):
        if option == "--config":
            _check(config_class, read_yaml(path), path)
    try:
        return parser.parse_args(arguments)
    except ArgumentError as error:
        message = _one_line(error)
        if "unrecognized arguments" in message:
            meant = meant_keys(message, list(parser.get_defaults().keys()))
            message += f": {meant}--help-all lists all keys"
        if keys := re.match("Unexpected config: (.*):$", message):
            message = f"{keys[1]}: has no value"
        if "arguments are required" in message:
            needed = " and ".join(f"--{key}" for key in re.split(", ", message.split(": ")[-1]))
            message = f"this needs {needed}: --help shows how it is called"
        raise UserError(message) from error


def _build(config_class: type[Config], values: Namespace, prefix: str) -> Config:
    """Make the dataclass, refusing the `null` that jsonargparse lets through for any key."""
    hints = get_type_hints(config_class)
    arguments = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        key, hint = prefix + field.name, hints[field.name]
        if field.name not in values:  # of an item in a list, which keeps its default
            if field.default is field.default_factory is dataclasses.MISSING:
                raise UserError(f"{key}: expected {_type_name(hint)}, but the key is missing")
            continue
        value = values[field.name]
        if value is None and not _accepts_none(hint):
            expected = "a group of keys" if dataclasses.is_dataclass(hint) else _type_name(hint)
            raise UserError(f"{key}: expected {expected}, got null")
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            value = _build(hint, value, f"{key}.")
        elif get_origin(hint) is tuple and dataclasses.is_dataclass(item := get_args(hint)[0]):
            assert isinstance(item, type)
            value = tuple(_build(item, one, f"{key}[{i}].") for i, one in enumerate(value))
        else:
            _check_value(key, value)
            # An unset variable of a shell; as a path it would be the folder that one is in.
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise UserError(f"{key}: expected {_type_name(hint)}, got an empty text")
        arguments[field.name] = value
    return config_class(**arguments)


def _check(config_class: type, values: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for what jsonargparse is not to be given, or explains badly."""
    if _count(values) > MAX_VALUES:
        raise UserError(f"{where}: more than {MAX_VALUES} values are no configuration")
    for key, value in values.items():
        _check_value(str(key), value)
    _check_keys(config_class, values, where)


def _count(value: Any) -> int:
    """Values in nested containers."""
    items = value.values() if isinstance(value, Mapping) else value
    return sum(map(_count, items)) if isinstance(value, Mapping | list | tuple) else 1


def _check_value(key: str, value: Any) -> None:
    """Raise `UserError` where a key has, or holds somewhere, what nothing can be done by.

    NaN passes every comparison that would refuse it. Text is parsed once more by jsonargparse.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_value(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_value(key, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}: expected a finite number, got {value}")
    elif isinstance(value, int) and abs(value) > _LARGEST:
        raise UserError(f"{key}: expected a number of at most {_LARGEST}, got one beyond")
    elif isinstance(value, str):
        try:
            check_string(value)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error


def _check_keys(
    config_class: type, values: Mapping[str, Any], where: str, prefix: str = ""
) -> None:
    """Name an unknown key in full, and a group that is not one, before jsonargparse does."""
    hints = get_type_hints(config_class)
    known = [field.name for field in dataclasses.fields(config_class)]
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"{where}: unknown key {prefix}{key}: expected one of {', '.join(known)}"
            )
        hint = hints[key]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                got = "null" if value is None else repr(value)
                raise UserError(f"{where}: {prefix}{key}: expected a group of keys, got {got}")
            _check_keys(hint, value, where, f"{prefix}{key}.")
        elif get_origin(hint) is tuple and dataclasses.is_dataclass(item := get_args(hint)[0]):
            assert isinstance(item, type)
            for i, one in enumerate(value if isinstance(value, list | tuple) else ()):
                if isinstance(one, Mapping):
                    _check_keys(item, one, where, f"{prefix}{key}[{i}].")


def _accepts_none(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_accepts_none(choice) for choice in get_args(hint))
    return hint is Any or hint is types.NoneType


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else in_words(str(hint))


def _one_line(error: Exception) -> str:
    """The parser's message on one line, in the words of YAML rather than of Python."""
    text = in_words(" ".join(str(error).split()))
    text += " an empty text" * text.endswith(" value:")
    text = re.sub(r"Problem with given class_path '[^']*': ", "", text)  # of an item in a list
    text = text.replace("Expected a ", "expected ")
    # Of a key that takes several types, each with an error of its own.
    subtypes = re.search(r"Does not validate .*Subtypes: \[(.*)\] Errors: .* Given value: ", text)
    if subtypes is not None:
        expected = " or ".join(subtypes[1].rsplit(", ", 1))
        text = f"{text[: subtypes.start()]}expected {expected}, got {text[subtypes.end() :]}"
    text = re.sub(r'Parser key "([^"]*)":', r"\1:", text)
    return text.replace(". Got value: ", ", got ")


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
