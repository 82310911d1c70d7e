"""Configuration files that were made to harm, or that say what YAML has beyond plain values."""

import re
import time
from dataclasses import dataclass, field

import pytest

from backbones.common.config import from_dict, parse_config
from backbones.common.errors import UserError
from backbones.common.read_yaml import read_yaml

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{to}: &{to} [{','.join(['*' + of] * 9)}]\n"
    for of, to in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "aliases": (LAUGHS, "anchors are not read"),
    "a list in itself": ("size: &a [*a]", "anchors are not read"),
    "an undefined alias": ("size: *a", "found undefined alias"),
    "a tag": ("size: !!python/object/apply:os.getcwd []", "tags are not read"),
    "a tag of YAML": ("size: !!binary aGk=", "tags are not read"),
    "a tag of one's own": ("size: !foo 3", "could not determine a constructor"),
    "a key that is a list": ("? [a]\n: 3", "a key must be a word or a number"),
    "deep lists": ("size: " + "[" * 100_000, "nested too deeply"),
    "deep mappings": ("size: " + "{a: " * 100_000, "nested too deeply"),
    "deep blocks": ("- " * 100_000, "nested too deeply"),
    "many digits": ("size: " + "9" * 5000, "a number of 5000 characters is too long"),
    "many hexadecimals": ("size: 0x" + "f" * 5000, "a number of 5002 characters is too long"),
    "many values": ("widths: [" + "1," * 200_000 + "]", "more than 100000 values"),
    "NUL": ('name: "a\\0b"', "holds a character that cannot be written"),
    "half a pair": ('name: "\\ud800"', "invalid Unicode character"),
    "a large file": ("name: " + "a" * 2_000_000, "more than 1048576 bytes"),
    "a merge": ("<<: 3", "expected a mapping"),
}


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    """Learning rate."""
    betas: tuple[float, ...] = (0.9, 0.99)
    """Decay rates."""


@dataclass(frozen=True)
class Config:
    size: int = 79
    """Side of the image in pixels."""
    name: str = "a"
    """What it is called."""
    clip: float | None = None
    """Largest norm of the gradient."""
    widths: tuple[int, ...] = (1,)
    """Widths of the layers."""
    model: dict[str, object] = field(default_factory=dict)
    """Settings of the model."""
    optim: Optim = field(default_factory=Optim)
    """The optimiser."""


@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_more_than_plain_yaml_is_one_line_at_once(tmp_path, text, reason):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match=reason) as error:
        read_yaml(path)
    assert time.process_time() - began < 2
    assert str(error.value).startswith(f"{path}")
    assert "\n" not in str(error.value)


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(Config, list(arguments))
    assert exit_info.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert len(line) < 2100
    return line


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        # Newer versions of PyYAML refuse it themselves, and it is a word that is no YAML.
        ("[" * 200_000, "nested too deeply|expected int"),
        ("&a [*a]", "anchors are not read"),
        ("9" * 5000, "too long"),
        ("[" + "x, " * 9000 + "]", "expected int"),
    ],
    ids=["deep", "anchor", "digits", "long"],
)
def test_text_inside_of_a_value_is_not_parsed_to_a_crash(tmp_path, value, reason, capsys):
    """jsonargparse takes text for YAML once more."""
    path = tmp_path / "a.yaml"
    path.write_text(f'size: "{value}"')
    assert re.search(reason, error_of(capsys, "--config", str(path)))
    assert re.search(reason, error_of(capsys, "--size", value))
    assert re.search(reason, error_of(capsys, f"--size={value}"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("optim: {lr: .nan}", "optim.lr"),
        ("optim: {lr: .inf}", "optim.lr"),
        ("optim: {lr: 1e400}", "optim.lr"),
        ("optim: {lr: '.nan'}", "optim.lr"),
        ("optim: {betas: [0.9, .nan]}", "optim.betas"),
        ("clip: -.inf", "clip"),
        ("model: {rcnn: {nms_thresh: .nan}}", "model.rcnn.nms_thresh"),
        ("size: 99999999999999999999", "size"),
    ],
)
def test_numbers_that_are_none_name_their_key(tmp_path, text, key, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert f"{key}: expected a" in error_of(capsys, "--config", str(path))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optim": {"lr": float("nan")}}, "optim.lr"),
        ({"clip": float("inf")}, "clip"),
        ({"clip": 10**400}, "clip"),
        ({"widths": [1, 2**60]}, "widths"),
        ({"widths": [1] * 200_000}, "more than 100000 values"),
    ],
)
def test_numbers_in_the_metadata_of_a_file_likewise(values, key):
    with pytest.raises(UserError, match=key):
        from_dict(Config, values)


def test_numbers_on_the_command_line_likewise(capsys):
    assert "optim.lr: expected a finite number, got nan" in error_of(capsys, "--optim.lr", ".nan")
    assert "clip: expected a finite number, got inf" in error_of(capsys, "--clip", "1e999")


@pytest.mark.parametrize("number", ["010", "1:30", "1_000", "0x10", "0b11", "1:30.5", "-012"])
def test_numbers_are_decimal(number, tmp_path):
    """By YAML's first version these are other ones than they look."""
    path = tmp_path / "c.yaml"
    path.write_text(f"first: 1\nepochs: {number}\n")
    with pytest.raises(UserError, match=rf"line 2: {number}: write this number in decimal"):
        read_yaml(path)
    assert read_yaml(path, is_foreign=True) == {"first": 1, "epochs": number}
    path.write_text("a: 10\nb: -0.5\nc: 1.0e-3\nd: '010'\ne: 0\nf: .5\n")
    assert list(read_yaml(path).values()) == [10, -0.5, 0.001, "010", 0, 0.5]


def test_what_looks_like_a_date_is_text(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("name: 2020-01-01")
    assert parse_config(Config, ["--config", str(path)]).name == "2020-01-01"
    path.write_text("size: 2020-99-99")
    assert "size: expected int, got 2020-99-99" in error_of(capsys, "--config", str(path))


@pytest.mark.parametrize("name", ["*.jpg", "a [1].jpg", "R&D", "{a,b}.tar", "a: b", "0a1b2c" * 11])
def test_words_that_are_no_yaml_stay_words(tmp_path, name):
    path = tmp_path / "a.yaml"
    path.write_text(f"name: '{name}'")
    assert parse_config(Config, ["--config", str(path)]).name == name
    assert parse_config(Config, ["--name", name]).name == name
