"""Inference by Ray, whose workers are killed: `make test-ray`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.untrained_detector import save_untrained

from backbones.common.images import write_image

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples/ray_batch.py"
IMAGES = int(os.environ.get("PICTURES", "200"))


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """What detects in 200 pictures, of which two are broken."""
    folder = tmp_path_factory.mktemp("ray")
    random = torch.Generator().manual_seed(0)
    for number in range(IMAGES):
        pixels = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=random)
        write_image(folder / f"in/{number:05d}.jpg", pixels)
    for number in (7, 90):
        (folder / f"in/{number:05d}.jpg").write_bytes(b"broken")
    weights = save_untrained(folder / "x.safetensors", 3)
    arguments = ["--weights", str(weights), "--inputs", str(folder / "in"), "--score", "0"]
    return [sys.executable, str(SCRIPT), *arguments, "--size", str(max(1, IMAGES // 25))]


def start(command: list[str], output: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, "--output", str(output)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_parts(output: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while len(list(output.glob("parts/*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers() -> list[int]:
    """Processes with a detector."""
    lines = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(path.parent.name) for path, line in lines.items() if b"(DetectPart)" in line]


def check_once(output: Path) -> None:
    lists = json.loads((output / "images.json").read_text())
    names = [Path(image["file_name"]).name for image in lists["images"]]
    broken = [Path(image["file_name"]).name for image in lists["errors"]]
    assert broken == ["00007.jpg", "00090.jpg"]
    assert sorted(names + broken) == [f"{number:05d}.jpg" for number in range(IMAGES)]
    assert names == sorted(names)
    results = json.loads((output / "results.json").read_text())
    assert {row["image_id"] for row in results} == set(range(1, IMAGES - 1))
    assert not list((output / "parts").glob(".*.tmp"))


def test_a_killed_worker_loses_nothing(command, tmp_path):
    process = start(command, tmp_path)
    wait_for_parts(tmp_path, 5, process)
    os.kill(workers()[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert f"images: {IMAGES - 2}, objects: " in output
    check_once(tmp_path)


def test_killed_as_a_whole_it_goes_on(command, tmp_path):
    process = start(command, tmp_path)
    wait_for_parts(tmp_path, 5, process)
    process.kill()
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("parts/*.jsonl")}
    again = start(command, tmp_path)
    output, _ = again.communicate(timeout=900)
    assert again.returncode == 0, output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_once(tmp_path)
    # Parts of other inputs do not pass for these.
    other = start([*command, "--size", "3"], tmp_path)
    output, _ = other.communicate(timeout=300)
    assert other.returncode == 2
    assert "begun with other inputs or keys: choose another output" in output
    # Nor does a part in which an image is missing, or there twice.
    part = min(before)
    lines = part.read_text().splitlines(keepends=True)
    for damage in (lines[:-1], [*lines, lines[0]]):
        part.write_text("".join(damage))
        output, _ = start(command, tmp_path).communicate(timeout=300)
        assert "error: " in output
        assert "1 images are not there exactly once" in output
