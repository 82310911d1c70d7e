import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from backbones.common.arguments import configurations
from backbones.common.cli import command
from backbones.common.config import (
    from_dict,
    load_config,
    parse_config,
    read_yaml,
    save_config,
    to_dict,
)
from backbones.common.errors import UserError


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    """Learning rate."""
    kind: Literal["sgd", "adam"] = "sgd"
    """Kind of optimiser."""
    clip: float | None = None
    """Largest norm of the gradient."""

    def __post_init__(self):
        if self.lr < 0:
            raise UserError(f"optim.lr must be 0 or more, got {self.lr}")


@dataclass(frozen=True)
class Train:
    data: str = "here"
    """Folder of the data."""
    size: int = 79
    """Side of the image in pixels."""
    widths: tuple[int, ...] = (1, 2)
    """Widths of the layers."""
    flip: bool = True
    """Mirror images."""
    optim: Optim = field(default_factory=Optim)
    """The optimiser."""


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_file_and_overrides(config_file):
    path = config_file("size: 151\noptim:\n  lr: 1e-3\n  clip: 2\n")
    assert parse_config(Train, []) == Train()
    config = parse_config(
        Train, ["--optim.clip", "null", "--config", path, "--widths", "[3, 4, 5]"]
    )
    assert config == Train(size=151, widths=(3, 4, 5), optim=Optim(lr=0.001))
    assert isinstance(config.optim, Optim)
    assert isinstance(config.widths, tuple)


@pytest.mark.parametrize("before", [True, False])
def test_overrides_win_wherever_the_file_stands(config_file, before):
    file, override = [f"--config={config_file('size: 151')}"], ["--size", "299"]
    assert parse_config(Train, override + file if before else file + override).size == 299


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("sise: 3", [], "unknown key sise: expected one of data, size, widths, flip, optim"),
        ("optim:\n  momentun: 3", [], "unknown key optim.momentun: expected one of lr, kind, clip"),
        ("size: seventy", [], "size: expected int, got seventy"),
        ("size: 79.5", [], "size: expected int, got 79.5"),
        ("size: true", [], "size: expected int, got True"),
        ("size: null", [], "size: expected int, got"),
        ("flip: null", [], "flip: expected bool, got"),
        ("optim: null", [], "optim: expected a group of keys, got null"),
        ("optim: 3", [], "optim: expected a group of keys, got 3"),
        ("optim:\n  kind: rms", [], "optim.kind: expected one of sgd, adam, got rms"),
        ("optim:\n  lr: -1", [], "optim.lr must be 0 or more, got -1.0"),
        ("size: 3\nsize: 4", [], "line 2: key 'size' stands twice"),
        ("optim:\n  lr: 1\n  lr: 2", [], "line 3: key 'lr' stands twice"),
        ("", [], "the config file is empty"),
        ("# only a comment", [], "the config file is empty"),
        ("- 1", [], "got a list"),
        ("size: [", [], "line"),
        ("size: \x00", [], "not a YAML file"),
        ("size: 3", ["--size", "big"], "size: expected int, got big"),
        ("size: 3", ["--optim.knd", "1"], "knd 1: did you mean --optim.kind? --help-all lists"),
        ("size: 3", ["--lr", "1"], "arguments: --lr 1: did you mean --optim.lr? --help-all lists"),
        ("size: 3", ["--si", "1"], "unrecognized arguments: --si 1: --help-all lists all keys"),
        ("size: 3", ["extra"], "unrecognized arguments: extra: --help-all lists all keys"),
        ("size: 3", ["--size", "null"], "size: expected int, got"),
        ("size: 3", ["--config", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        ("size: 3", ["optim.kin=adam"], "did you mean --optim.kind? --help-all lists"),
        ("size: 3", ["--cilp", "1"], "did you mean --optim.clip? --help-all lists"),
        ("size: 3", ["--size"], "--size: expected a value after it"),
        ("size: 3", ["--data", "--size", "3"], "--data: expected a value after it"),
        ("size: 3", ["--optim.kind", ""], "kind: expected one of sgd, adam, got an empty text"),
        ("size: 3", ["--optim.clip="], "optim.clip: expected float or null, got an empty text"),
        ("size: 3", ["--lr0", "1"], "arguments: --lr0 1: did you mean --optim.lr? --help-all"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(config_file, capsys, text, arguments, expected):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(Train, ["--config", config_file(text), *arguments])
    assert exit_info.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert expected in output.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: there is no such file"),
        (["--config"], "--config: expected a YAML file"),
        (["--optim.lr.rate", "1"], "--optim.lr.rate: there is no such key: --optim.lr takes"),
        (["--size", "010"], "--size: expected a number in decimal digits, got 010"),
        (["--widths", "[1, 010]"], "--widths: expected a number in decimal digits, got 010"),
        (["--optim.lr=1:30"], "--optim.lr: expected a number in decimal digits, got 1:30"),
        (["--config", "smal"], "--config smal: there is no such file: name a file"),
        ([os.fsdecode(b"--data=\xfc.jpg")], "\\xfc.jpg: no UTF-8: rename it, or name its folder"),
    ],
)
def test_missing_file(capsys, arguments, expected):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(Train, arguments)
    assert exit_info.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_later_of_several_files_wins_and_what_it_lacks_stays(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("size: 3\noptim:\n  kind: adam\n  lr: 0.5\n")
    second.write_text("optim:\n  lr: 0.25\n")
    train = parse_config(Train, ["--config", str(first), "--size", "9", f"--config={second}"])
    assert (train.size, train.optim.kind, train.optim.lr) == (9, "adam", 0.25)
    again = parse_config(Train, ["--config", str(second), "--config", str(first)])
    assert (again.size, again.optim.lr) == (3, 0.5)


def test_configurations_have_names_of_their_own():
    files = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))
    assert sorted(configurations().values()) == files


def test_binary_file_is_not_yaml(tmp_path):
    (tmp_path / "weights.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not a YAML file"):
        read_yaml(tmp_path / "weights.yaml")


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(Train, ["--help"], "Train something.")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "Train something.",
        "Side of the image in pixels.",
        "--optim.clip",
        "Kind of optimiser. (type: one of sgd, adam, default: sgd)",
    ):
        assert words in text


@dataclass(frozen=True)
class Part:
    kind: Literal["a", "b"] | None = None
    """Kind of the part."""
    count: int | None = None
    """Number of it."""


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...] = ()
    """What it is made of."""
    first: Part = field(default_factory=Part)
    """What comes first."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--first.kind", "c"], "error: first.kind: expected one of a, b or null, got c\n"),
        (["--first.count", "c"], "error: first.count: expected int or null, got c\n"),
        (
            ["--parts", "[{kind: c}]"],
            "error: parts: kind: expected one of a, b or null, got c\n",
        ),
    ],
)
def test_types_are_told_in_words(arguments, expected, capsys):
    with pytest.raises(SystemExit):
        parse_config(Whole, arguments)
    assert capsys.readouterr().err == expected


def test_saved_config_reads_back(tmp_path):
    config = Train(data="there", widths=(5,), optim=Optim(lr=1e-9, clip=1.5))
    save_config(tmp_path / "config.yaml", config)
    assert parse_config(Train, ["--config", str(tmp_path / "config.yaml")]) == config
    assert from_dict(Train, to_dict(config)) == config


@pytest.mark.parametrize("values", [{"sise": 3}, {"size": "x"}, {"optim": {"lr": None}}])
def test_from_dict_raises(values):
    with pytest.raises(UserError):
        from_dict(Train, values)


def test_exit_codes_of_a_command(capsys):
    def user_error():
        raise UserError("one\nline")

    def interrupt():
        raise KeyboardInterrupt

    def defect():
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as exit_info:
        command(user_error)()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: one line\n"
    with pytest.raises(SystemExit) as exit_info:
        command(interrupt)()
    assert exit_info.value.code == 130
    with pytest.raises(ZeroDivisionError):
        command(defect)()


@dataclass(frozen=True)
class Listed:
    """Has a list."""

    inputs: list[str]
    """Files."""
    name: str = "x"
    """A name."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--inputs", "a.jpg"], ["a.jpg"]),
        (["--inputs", "a b.jpg", "dir/", "--name", "y"], ["a b.jpg", "dir/"]),
        (["--name", "y", "--inputs", "a", "1", "null"], ["a", "1", "null"]),
        (["--inputs", '["a", "b"]'], ["a", "b"]),
        (["--inputs", "[1].jpg"], ["[1].jpg"]),
        (["--inputs", "[1].jpg", "b"], ["[1].jpg", "b"]),
        (["--inputs", "a", "--name", "y", "--inputs=b", "--inputs", '["c"]'], ["a", "b", "c"]),
    ],
)
def test_a_list_is_several_values(arguments, expected):
    assert parse_config(Listed, arguments).inputs == expected


def test_a_list_needs_a_value(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_config(Listed, ["--inputs", "--name", "y"])
    assert stopped.value.code == 2
    assert "inputs" in capsys.readouterr().err


@dataclass(frozen=True)
class Named:
    name: str
    """What it is called."""
    size: int = 3
    """Its size."""


@dataclass(frozen=True)
class Several:
    optims: tuple[Optim, ...] = ()
    """Optimisers."""
    names: tuple[Named, ...] = ()
    """Named things."""


def test_a_list_of_groups(config_file, tmp_path, capsys):
    path = config_file("optims:\n  - {lr: 0.2}\n  - {kind: adam, clip: 1}\n")
    config = parse_config(Several, ["--config", path])
    assert config == Several((Optim(lr=0.2), Optim(kind="adam", clip=1.0)))
    save_config(tmp_path / "saved.yaml", config)
    assert parse_config(Several, ["--config", str(tmp_path / "saved.yaml")]) == config
    for text, words in [
        ("optims:\n  - {lr: 1}\n  - {rate: 1}\n", "unknown key optims[1].rate: expected one of lr"),
        ("names:\n  - {size: 1}\n", "name"),
        ("optims:\n  - {lr: -1}\n", "optim.lr must be 0 or more, got -1"),
    ]:
        with pytest.raises(SystemExit):
            parse_config(Several, ["--config", config_file(text)])
        assert words in capsys.readouterr().err


@dataclass(frozen=True)
class Run:
    run: str = "here"
    """Folder."""
    size: int = 1
    """Size."""
    resume: bool | Literal["auto"] = False
    """Continue."""


@pytest.mark.parametrize(
    "resume",
    [
        ["--run", "{run}", "--resume", "true"],
        ["--run={run}", "--resume=true"],
        ["--resume", "True", "--run", "{run}"],
        ["--run", "{run}", "--resume", "yes"],
        ["--run={run}", "--resume"],
        ["--resume", "--run", "{run}"],
    ],
    ids=" ".join,
)
def test_a_resumed_run_has_its_own_configuration(tmp_path, resume):
    run = tmp_path / "moved"
    run.mkdir()
    save_config(run / "config.yaml", Run(str(tmp_path / "before"), size=7))
    again = [word.replace("{run}", str(run)) for word in resume]
    assert parse_config(Run, again) == Run(str(run), size=7, resume=True)
    assert parse_config(Run, [*again, "--size", "8"]).size == 8
    assert parse_config(Run, ["--size=8", *again]).size == 8


@pytest.mark.parametrize("other", [[], ["--resume", "false"], ["--resume=no"]])
def test_a_run_that_is_not_resumed_has_the_configuration_it_is_given(tmp_path, monkeypatch, other):
    save_config(tmp_path / "config.yaml", Run(str(tmp_path), size=7))
    monkeypatch.chdir(tmp_path)
    assert parse_config(Run, ["--run", str(tmp_path), *other]).size == 1
    assert parse_config(Run, ["--run", "new", "--resume", "auto"]).size == 1


def test_a_resumed_run_may_be_the_default_one_or_have_another_configuration(
    tmp_path, monkeypatch, config_file
):
    (tmp_path / "here").mkdir()
    save_config(tmp_path / "here" / "config.yaml", Run(size=7))
    monkeypatch.chdir(tmp_path)
    assert parse_config(Run, ["--resume"]) == Run(size=7, resume=True)
    assert parse_config(Run, ["--resume", "--config", config_file("size: 9")]).size == 9


def test_a_configuration_that_was_cut_off_is_named(tmp_path, caplog):
    path = tmp_path / "config.yaml"
    save_config(path, Run(str(tmp_path), size=7))
    arguments = ["--run", str(tmp_path), "--resume"]
    parse_config(Run, arguments)
    assert "cut off" not in caplog.text
    path.write_text(path.read_text().partition("size")[0])
    parse_config(Run, arguments)
    assert f"{path}: has no resume, size, of which the defaults are taken: was it" in caplog.text


def test_resume_alone_takes_the_newest_run_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newest", "here", "older")):
        (tmp_path / name).mkdir()
        save_config(tmp_path / name / "config.yaml", Run(name, size=age))
        os.utime(tmp_path / name / "config.yaml", (1000 - age, 1000 - age))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("epochs: 3\n")
    assert parse_config(Run, ["--resume"]) == Run("newest", size=0, resume=True)
    assert parse_config(Run, ["--resume", "--run", "older"]).size == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "maybe"], "resume: expected bool or one of auto, got maybe"),
        (["--resume", "--run", "mistyped"], "--resume: mistyped holds no run (it has no config"),
        (["--resume", "--run"], "--run: expected a value after it"),
        (["--resume"], "here/config.yaml: unknown key width: expected one of run, size"),
    ],
)
def test_mistakes_in_resuming_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.yaml").write_text("width: 3\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        parse_config(Run, arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_resume_alone_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse_config(Run, ["--resume"])
    said = capsys.readouterr().err
    assert "--resume: ./ has no folder with the config.yaml of a run of this kind" in said


def test_what_is_true_or_false_may_stand_alone():
    @dataclass(frozen=True)
    class Group:
        flip: bool = False

    @dataclass(frozen=True)
    class Flags:
        first: bool = False
        group: Group = field(default_factory=Group)
        size: int = 1

    assert parse_config(Flags, ["--first", "--size", "2"]) == Flags(first=True, size=2)
    assert parse_config(Flags, ["--first", "false", "--group.flip"]).group.flip
    assert not parse_config(Flags, ["--first=false"]).first


def test_a_configuration_that_extends_another_explains_its_keys(capsys):
    @dataclass(frozen=True)
    class Small(Train):
        size: int = 32

    with pytest.raises(SystemExit):
        parse_config(Small, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Side of the image in pixels. (type: int, default: 32)" in text


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--size", "1", "--size", "2"], "--size"),
        (["--size=1", "--flip", "--size", "1"], "--size"),
        (["--optim.lr", "1", "--widths", "[1]", "--optim.lr=2"], "--optim.lr"),
        (["--widths", "[1]", "--widths", "[2]"], "--widths"),
    ],
)
def test_a_key_that_stands_twice_is_refused(arguments, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_config(Train, arguments)
    words = f"error: {option} stands 2 times: it takes one value, once\n"
    assert capsys.readouterr().err == words


def test_a_group_that_takes_a_value_does_not_stand_beside_the_key_that_it_sets(capsys):
    @dataclass(frozen=True)
    class Data:
        SHORT: ClassVar[dict[str, str | None]] = {"root": None, "format": "auto"}
        root: str = ""
        format: str = "voc"

    @dataclass(frozen=True)
    class Tool:
        data: Data = field(default_factory=Data)

    given = parse_config(Tool, ["--data.format", "coco", "--data", "a"])
    assert given == Tool(Data("a", "coco"))
    for arguments, words in (
        (["--data", "a", "--data.root=b"], "--data sets --data.root, which stands beside it"),
        (["--data", "a", "--data=b"], "--data stands 2 times: it takes one value, once"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_config(Tool, arguments)
        assert words in capsys.readouterr().err


def test_all_keys_are_printed_whatever_the_help_shows(config_file, capsys):
    with pytest.raises(SystemExit):
        parse_config(Train, ["--config", config_file("size: 9"), "--print_config"], usual="size")
    assert yaml.safe_load(capsys.readouterr().out) == to_dict(Train(size=9, widths=[1, 2]))


def test_a_key_without_a_value_is_named(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text("widths:\n")
    with pytest.raises(SystemExit):
        parse_config(Train, ["--config", str(path)])
    assert capsys.readouterr().err == "error: widths: has no value\n"


def test_a_list_of_words_and_config_files_may_come_in_parts(config_file):
    @dataclass(frozen=True)
    class Words:
        names: list[str] = field(default_factory=list)
        size: int = 1

    given = ["--names", "a", "b", "--config", config_file("size: 2"), "--names", "c"]
    config = parse_config(Words, [*given, f"--config={config_file('size: 3')}"])
    assert config == Words(["a", "b", "c"], 3)


def test_a_saved_configuration_is_read_by_value(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optim: {lr: 1e-3}\nwidths: [3]\n")
    assert load_config(Train, path) == Train(widths=(3,), optim=Optim(lr=0.001))
    path.write_text("sise: 3\n")
    with pytest.raises(UserError, match=r"config\.yaml: unknown key sise"):
        load_config(Train, path)


def test_names_that_are_too_long_or_empty_are_one_line(monkeypatch, capsys):
    @dataclass(frozen=True)
    class Where:
        run: str = "runs"
        names: tuple[str, ...] = ()

    for arguments, message in (
        (["--config", "x" * 300], f"error: --config {'x' * 300}: there is no such file"),
        (["--run", ""], "error: run: expected str, got an empty text"),
        (["--names", "a", ""], "error: names: expected"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(lambda arguments=arguments: parse_config(Where, arguments))()
        assert message in capsys.readouterr().err
