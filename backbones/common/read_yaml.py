"""YAML that others wrote, in constant time and memory: the plain part of the language."""

import os
import re
from typing import Any

import yaml
from yaml import events
from yaml.constructor import ConstructorError

from backbones.common.errors import UserError
from backbones.common.read_json import check_text
from backbones.common.regular_files import open_file

MAX_BYTES = 1 << 20
"""Of a file: seconds to read."""
_MAX_DEPTH = 30
MAX_VALUES = 100_000
"""More take minutes to check, and are no configuration."""
_NUMBER = re.compile(r"[-+]?([0-9][0-9_:.]*|0[xX][0-9a-fA-F_]+)")
DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*|[0-9]*\.[0-9]*|\.inf|\.nan)([eE][-+]?[0-9]+)?", re.I)
"""A number as people write it."""
_MAX_DIGITS = 40
"""Of a number, as text: more say nothing, and Python refuses to convert thousands of them."""


def read_yaml(path: str | os.PathLike[str], *, is_foreign: bool = False) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Dates in it are text.

    So are numbers that are not written in decimal digits in a file of other programs, `is_foreign`,
    which may have any keys; elsewhere these are an error.

    Raises:
        UserError: the file is missing, empty, not YAML, no mapping, of more than a megabyte, has a
            key twice or one that is no text or number, or what `check_plain` refuses.
    """
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot read config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file: it is not UTF-8 text") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES} bytes: is this a config file?")
    try:
        check_plain(text)
        values = yaml.load(text, Loader=_ForeignLoader if is_foreign else _StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {error.problem or 'not valid YAML'}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a YAML file: {reason}") from error
    if values is None:
        raise UserError(f"{path}: the config file is empty: expected lines `key: value`")
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines `key: value`, got a {type(values).__name__}")
    return values


class NotPlainError(ConstructorError):
    """More than plain YAML."""


def check_plain(text: str) -> None:
    """Raise `NotPlainError` for more than plain YAML, other errors of PyYAML where it is none.

    Refused are anchors, by which a few lines can stand for gigabytes; tags, which name types of
    Python; deep nesting, which ends in a crash; very many values; numbers of many digits; and text
    that libraries in C do not bear. Nothing is built while this looks.
    """
    depth = 0
    parsed = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for count, event in enumerate(parsed):
        depth += isinstance(event, events.CollectionStartEvent)
        depth -= isinstance(event, events.CollectionEndEvent)
        problem = _problem_of(event.value) if isinstance(event, events.ScalarEvent) else None
        if isinstance(event, events.ScalarEvent | events.CollectionStartEvent):
            if event.anchor is not None:
                problem = f"&{event.anchor}: anchors are not read, write the value each time"
            if str(event.tag).startswith("tag:yaml.org"):
                problem = f"{event.tag}: tags are not read, leave it out"
        if depth > _MAX_DEPTH:
            problem = "nested too deeply"
        if count > MAX_VALUES:
            problem = f"more than {MAX_VALUES} values are no configuration"
        if problem is not None:
            raise NotPlainError(None, None, problem, event.start_mark)  # type: ignore[arg-type]


def check_string(text: str) -> None:
    """Raise `ValueError` for a text that jsonargparse, which takes it for YAML, must not be given.

    A word that is no YAML stays a word.
    """
    try:
        check_plain(text)
    except NotPlainError as error:
        raise ValueError(str(error.problem)) from error
    except yaml.YAMLError:
        return


def _problem_of(scalar: str) -> str | None:
    if len(scalar) > _MAX_DIGITS and _NUMBER.fullmatch(scalar):
        return f"a number of {len(scalar)} characters is too long"
    try:
        check_text(scalar)
    except ValueError as error:
        return str(error)
    return None


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; PyYAML would take the last."""


class _ForeignLoader(_StrictLoader):
    """The same of a file whose keys others chose."""


def _strict_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problem = "a key must be a word or a number"
            raise ConstructorError(None, None, problem, key_node.start_mark)
        if key_node.value in seen:
            problem = f"key {key_node.value!r} stands twice, keep one"
            raise ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


def _decimal(loader: _StrictLoader, node: yaml.ScalarNode) -> Any:
    """No other number: YAML takes 010 for 8, 1:30 for 90 and 1_0 for 10."""
    if not DECIMAL.fullmatch(node.value):
        if isinstance(loader, _ForeignLoader):
            return node.value
        problem = f"{node.value}: write this number in decimal digits, or in quotes if it is text"
        raise ConstructorError(None, None, problem, node.start_mark)
    if node.tag.endswith("int"):
        return loader.construct_yaml_int(node)
    return loader.construct_yaml_float(node)


for _loader in (_StrictLoader, _ForeignLoader):
    for _kind in ("int", "float"):
        _loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _decimal)
    _loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)
    # What looks like a date is text, and not an error where there is no such day.
    _loader.yaml_implicit_resolvers = {
        letter: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
