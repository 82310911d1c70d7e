"""Processes killed at random moments lose nothing that was done: `make soak`.

The kills of `make test` are in test_resume.py and test_infer_outputs.py.
"""

import json
import os
import random
import signal
import time

import pytest
import torch
from helpers.untrained_detector import save_untrained
from soak.inputs import training, write_dataset, write_pictures
from soak.watch import start, tool

from detect.media.video import VideoReader, slideshow

KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("SEED", "1"))

pytestmark = pytest.mark.soak


def test_training_killed_at_random_ends_as_the_unbroken(tmp_path):
    data = write_dataset(tmp_path / "data", 40)
    keys = {"epochs": 12, "eval_every": 4, "checkpoint_minutes": 0.02}
    log, began = tmp_path / "log.txt", time.monotonic()
    unbroken = start(training(data, tmp_path / "unbroken", **keys), log)
    assert unbroken.wait() == 0, log.read_text()[-2000:]
    takes = time.monotonic() - began
    moments, kills = random.Random(SEED), 0
    command = training(data, tmp_path / "run", **keys)
    while True:
        process = start(command, log)
        # Now and then before its first step, and in the end it is let go.
        time.sleep(moments.uniform(2, 2 + takes / 3))
        if kills == KILLS or process.poll() is not None:
            assert process.wait() == 0, log.read_text()[-2000:]
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        if (tmp_path / "run/config.yaml").exists():
            command = tool("train_detector", "--run", tmp_path / "run", "--resume")
    print(f"\ntraining of {takes:.0f} seconds, killed {kills} times with seed {SEED}")
    assert kills >= min(KILLS, 3)
    for name in ("best.safetensors", "last.safetensors"):
        with (
            (tmp_path / "run" / name).open("rb") as a,
            (tmp_path / "unbroken" / name).open("rb") as b,
        ):
            assert torch.equal(*(torch.frombuffer(f.read(), dtype=torch.uint8) for f in (a, b)))
    tables = [(tmp_path / run / "curves.csv").read_text() for run in ("run", "unbroken")]
    assert len(tables[0].splitlines()) == len(tables[1].splitlines())
    assert not list((tmp_path / "run").rglob(".*"))


def test_inference_killed_at_random_leaves_what_was_done(tmp_path):
    weights = save_untrained(tmp_path / "x.safetensors", 3)
    write_pictures(tmp_path / "in", 200)
    frames = torch.randint(0, 256, (25, 3, 120, 160), dtype=torch.uint8)
    slideshow(tmp_path / "in/v.mp4", [frame for frame in frames for _ in range(20)], 25, (120, 160))
    log, output, moments = tmp_path / "log.txt", tmp_path / "out", random.Random(SEED)
    arguments = ("--inputs", tmp_path / "in", "--output", output, "--score_thresh", "0")
    arguments += ("--overwrite",)
    counts = []
    for _ in range(KILLS):
        process = start(tool("infer", "--weights", weights, *arguments), log)
        while not (output / "results.json").exists() or counts:
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.05)
            if counts:  # an earlier one is there until this one begins
                time.sleep(4)
                break
        time.sleep(moments.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        images = json.loads((output / "images.json").read_text())["images"]
        results = json.loads((output / "results.json").read_text())
        assert {result["image_id"] for result in results} >= {image["id"] for image in images}
        pictures = {image["annotated"] for image in images if "frame" not in image}
        assert len({path.name for path in output.glob("*.jpg")} ^ pictures) <= 1
        shown = sum("frame" in image for image in images)
        if shown > 75:
            played = len(list(VideoReader(output / "v.mp4")))
            assert shown - 75 < played <= shown
        counts.append(len(images))
    print(f"\ninference killed {KILLS} times with seed {SEED}, after images: {counts}")
    assert len(set(counts)) > 1
