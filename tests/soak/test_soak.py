"""Long runs hold no more at their end than before: `make soak`, and a short part in `make test`."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from helpers.untrained_detector import save_untrained
from soak.inputs import training, write_dataset, write_pictures
from soak.watch import check_flat, tool, watch

from detect.media.video import slideshow

MINUTES = float(os.environ.get("MINUTES", "20"))
PICTURES = int(os.environ.get("PICTURES", "20000"))


def check_training(
    folder: Path, images: int, seconds: float, every: float, growth: float, **keys
) -> None:
    data = write_dataset(folder / "data", images)
    command = training(data, folder / "run", epochs=10_000, **keys)
    begun = folder / "run/last.safetensors"
    held = watch(command, folder / "log.txt", begun, every, code=130, seconds=seconds)
    log = (folder / "log.txt").read_text()
    scores = log.count(": AP ")
    check_flat(held, f"training for {seconds / 60:.1f} minutes, {scores} scores", growth)
    assert scores >= 2, log[-2000:]


def check_inference(folder: Path, inputs: Path, broken: int, every: float, growth: float) -> int:
    """Number of pictures or frames in the results."""
    weights = save_untrained(folder / "x.safetensors", 3)
    arguments = ("--inputs", inputs, "--output", folder / "out", "--score_thresh", "0")
    command = tool("infer", "--weights", weights, *arguments)
    log = folder / "log.txt"
    held = watch(command, log, folder / "out/images.json", every, code=2 if broken else 0)
    images = json.loads((folder / "out/images.json").read_text())["images"]
    check_flat(held, f"inference, {len(images)} results, {broken} broken", growth)
    assert log.read_text().count("corrupt or truncated") == broken
    return len(images)


def test_some_seconds_of_training(tmp_path):
    check_training(tmp_path, 8, 8, 0.2, 1.15, checkpoint_minutes=0.05)


def test_some_pictures(tmp_path):
    broken = write_pictures(tmp_path / "in", 200)
    assert check_inference(tmp_path, tmp_path / "in", broken, 0.05, 1.15) == 200 - broken


@pytest.mark.soak
def test_training_for_long(tmp_path):
    check_training(tmp_path, 40, 60 * MINUTES, 2, 1.05, eval_every=10, checkpoint_minutes=1)


@pytest.mark.soak
def test_many_pictures(tmp_path):
    broken = write_pictures(tmp_path / "in", PICTURES)
    assert check_inference(tmp_path, tmp_path / "in", broken, 1, 1.05) == PICTURES - broken


@pytest.mark.soak
def test_a_video_of_ten_minutes(tmp_path):
    frames = torch.randint(0, 256, (25, 3, 120, 160), dtype=torch.uint8)
    count = 10 * 60 * 25
    slideshow(tmp_path / "v.mp4", itertools.islice(itertools.cycle(frames), count), 25, (120, 160))
    assert check_inference(tmp_path, tmp_path / "v.mp4", 0, 1, 1.05) == count
