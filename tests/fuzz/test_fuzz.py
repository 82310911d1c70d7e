"""Mutants of every kind of file that is read: `make fuzz` reads thousands, this file some.

None ends in another exception than the product's own, of one line, in a crash, a hang, more than
two gigabytes, or a number that is none.
"""

import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from fuzz.kinds import make_kinds
from fuzz.pool import GOOD, fuzz, outcome_of, table
from helpers.tool_runs import run

from detect.commands import infer


def check(root, seed, count):
    findings = fuzz(root, seed, count)
    assert len(findings) == count
    print(f"\nseed {seed}\n{table(findings)}")
    bad = [text for _, outcome, text in findings if outcome not in GOOD]
    assert not bad, "\n".join(bad[:40])


def test_what_is_changed_was_good(tmp_path):
    for kind in make_kinds(tmp_path):
        data = kind.file.read_bytes()
        assert outcome_of(kind) == ("read", ""), kind.name
        kind.file.write_bytes(data)


def test_some_mutants(tmp_path):
    check(tmp_path, seed=0, count=120)


def test_a_folder_of_mutants_through_infer(tmp_path, monkeypatch, capfd, caplog):
    """Each is looked at or has its line, and the good one among them is found."""
    kinds = [kind for kind in make_kinds(tmp_path) if kind.name in ("jpg", "png", "tiff", "mkv")]
    folder, count = tmp_path / "in", 24
    folder.mkdir()
    shutil.copy(kinds[0].file, folder / "good.jpg")
    for number in range(count):
        random, kind = Random(f"infer {number}"), kinds[number % len(kinds)]
        data = kind.change(kind.file.read_bytes(), random)
        (folder / f"{number}{kind.file.suffix}").write_bytes(data)
    arguments = ("--weights", str(tmp_path / "d.safetensors"), "--inputs", str(folder))
    output = tmp_path / "found"
    code = run(infer, *arguments, "--output", str(output), monkeypatch=monkeypatch)
    images = json.loads((output / "images.json").read_text())["images"]
    errors = capfd.readouterr().err + caplog.text
    assert code == 2
    assert "Traceback" not in errors
    done = {Path(image["file_name"]).name for image in images}
    assert "good.jpg" in done
    for file in folder.iterdir():
        assert file.name in done or f"{file}: " in errors, file


@pytest.mark.fuzz
def test_thousands_of_mutants(tmp_path):
    check(tmp_path, int(os.environ.get("SEED", "1")), int(os.environ.get("COUNT", "5000")))
