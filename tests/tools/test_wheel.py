"""The wheel: what it holds, and that it works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from backbones import __version__

ROOT = Path(__file__).parents[2]

hatchling = pytest.importorskip("hatchling.builders.wheel", reason='pip install -e ".[dev]"')


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    builder = hatchling.WheelBuilder(str(ROOT))
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(builder.build(directory=str(folder), versions=["standard"])))


def test_it_claims_two_names_and_has_the_configurations(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        metadata = next(name for name in names if name.endswith("/METADATA"))
        assert "lowres-rcnn = detect.__main__:main" in file.read(entry).decode()
        assert f"Version: {__version__}\n" in file.read(metadata).decode()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert {name.split("/")[0] for name in names} == {
        "backbones",
        "detect",
        metadata.split("/")[0],
    }
    configs = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert {f"detect/{name}" for name in configs} <= names
    assert {"backbones/py.typed", "detect/py.typed", "detect/evaluation/report.html.jinja"} <= names


CALLS = """
import sys
from detect.__main__ import main

for call in ("infer --help", "train_detector --config small --data.format voc --data.root none"):
    sys.argv = ["lowres-rcnn", *call.split()]
    try:
        main()
    except SystemExit as end:
        print("exit code", end.code)
"""


def test_it_works_in_another_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    # One process for both calls: importing torch is most of the time.
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("usage: lowres-rcnn infer ")
    assert "exit code 0\nexit code 2\n" in done.stdout
    # The configuration was found, and the keys of the command line were taken behind it.
    assert (
        done.stderr == "error: none: not found: expected the folder of a dataset, see data.root\n"
    )
