"""What README and docs say to type is taken, and what they say is printed stands in the code."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from backbones.common import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CALL = re.compile(r"(?:^|\s)(?:(-m (?:-- )?tools\.)|lowres-rcnn |-m -- detect )(\w+) (-.*)$")
"""Of one of our commands with arguments: whether of `tools`, its name, the arguments."""


class ParsedError(Exception):
    """Where a tool would begin its work."""


def calls() -> list[tuple[str, str, str, str]]:
    """Page, package, command and arguments of all that the pages say to type."""
    found = []
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in lines:
            match = CALL.search(line.split("  #")[0].rstrip())
            if match and not match[3].startswith("--help"):
                package = "tools" if match[1] else "detect.commands"
                found.append((page.name, package, match[2], match[3]))
    return found


def test_the_pages_have_commands():
    assert {"README.md", "training.md", "pretraining.md", "results.md"} <= {c[0] for c in calls()}


@pytest.mark.parametrize(("page", "package", "name", "arguments"), calls())
def test_every_command_is_parsed(page, package, name, arguments, monkeypatch, tmp_path):
    if (ROOT / "detect/commands" / f"{name}.py").exists():
        package = "detect.commands"
    module = importlib.import_module(f"{package}.{name}")

    def parse(*args, **kwargs):
        config.parse_config(*args, **kwargs)
        raise ParsedError

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "DIR/CLASS").mkdir(parents=True)
    (tmp_path / "runs/old").mkdir(parents=True)
    for name_of_file in ("mine.yaml", "runs/old/config.yaml"):
        (tmp_path / name_of_file).write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "parse_config", parse)
    # Runs that are resumed are not there.
    monkeypatch.setattr(config, "arguments_of_run", lambda *_, **__: [])
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(arguments)])
    with pytest.raises(ParsedError):
        module.main()


def test_messages_of_the_troubleshooting_stand_in_the_code():
    files = [path for package in ("backbones", "detect") for path in (ROOT / package).rglob("*.py")]
    # Strings that go over several lines, joined.
    code = "".join(re.sub(r'"\s*f?"', "", path.read_text()) for path in files)
    rows = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
    assert len(rows) > 20
    for row in rows:
        for part in row.split("…"):
            if not row.startswith("ModuleNotFoundError") and len(part.strip()) > 2:
                assert part.strip(" :;") in code, row
