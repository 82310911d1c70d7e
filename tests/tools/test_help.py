"""`--help` of every tool: a reader sees a key's name and its text, and nothing around them."""

import importlib
import re
from pathlib import Path

import pytest
from helpers.tool_runs import run

TOOLS = sorted(path.stem for path in (Path(__file__).parents[2] / "tools").glob("[!_]*.py"))
COMMANDS = sorted((Path(__file__).parents[2] / "detect/commands").glob("[!_]*.py"))

LEANING = ("Of ", "As ", "Also ", "Which ", "At most this many")
"""Beginnings of texts that lean on what stands before them in the source."""


@pytest.mark.parametrize("tool", TOOLS)
def test_every_key_explains_itself(tool, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "10000")  # a key to a line
    module = importlib.import_module(f"tools.{tool}")
    assert run(module, "--help-all", monkeypatch=monkeypatch) == 0
    # A long key has its text on the next line.
    text = re.sub(r"\n {20,}", "  ", capsys.readouterr().out)
    assert "Literal[" not in text
    lines = re.findall(r"^  --(.*) \((?:required, )?type: ", text, re.MULTILINE)
    assert lines
    for line in lines:
        key, _, explanation = line.partition("  ")
        assert len(explanation.strip()) > 10, key
        assert not explanation.strip().startswith(LEANING), line


@pytest.mark.parametrize("tool", [path.stem for path in COMMANDS])
def test_short_help_has_the_usual_keys_and_calls_that_work(tool, monkeypatch, capsys):
    module = importlib.import_module(f"detect.commands.{tool}")
    assert run(module, "--help", monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"\nlowres-rcnn {tool} " in text
    assert "--help-all" in text
    shown = re.findall(r"^  --([\w.]+) ", text, re.MULTILINE)
    assert set(module.USUAL.split()) <= set(shown)
    assert len(shown) <= len(module.USUAL.split()) + 1
