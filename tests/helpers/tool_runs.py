"""Running a command-line tool in this process, as its tests do."""

import re
import sys
from pathlib import Path


def run(tool, *arguments: str, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    try:
        tool.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def error_of(tool, *arguments: str, monkeypatch, capsys) -> str:
    """The one line that a user's mistake ends in."""
    capsys.readouterr()
    assert run(tool, *arguments, monkeypatch=monkeypatch) == 2
    stderr = capsys.readouterr().err
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    return errors[0]


def not_logged(run: Path, out: str, err: str) -> list[str]:
    """Of the lines that a training has printed, those that are not once in its `log.txt`."""
    printed = out.splitlines() + re.findall(r"^\d\d:\d\d:\d\d (.*)$", err, re.MULTILINE)
    assert printed
    log = (run / "log.txt").read_text()
    logged = re.findall(r"^\S+ \S+ (?:INFO|WARNING) (.*)$", log, re.MULTILINE)
    return [line for line in printed if logged.count(line) != 1]
