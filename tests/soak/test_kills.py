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

from backbones.networks.weights import load_weights
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
        ours, theirs = (load_weights(tmp_path / run / name)[0] for run in ("run", "unbroken"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
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
    for number in range(KILLS):
        process = start(tool("infer", "--weights", weights, *arguments), log)
        while number == 0 and not (output / "results.json").exists():
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.05)
        # Also while it deletes what the one before has left.
        time.sleep(moments.uniform(4 if number else 0, 12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        images = json.loads((output / "images.json").read_text())["images"]
        if (output / "results.json").exists():
            results = json.loads((output / "results.json").read_text())
            assert {result["image_id"] for result in results} >= {image["id"] for image in images}
        pictures = {image["annotated"] for image in images if "frame" not in image}
        assert {path.name for path in output.glob("*.jpg")} <= pictures
        shown = sum("frame" in image for image in images)
        if shown > 75 and (output / "v.mp4").exists():
            played = len(list(VideoReader(output / "v.mp4")))
            assert shown - 75 < played <= shown
        counts.append(len(images))
    print(f"\ninference killed {KILLS} times with seed {SEED}, after images: {counts}")
    assert len(set(counts)) > 1
    assert start(tool("infer", "--weights", weights, *arguments), log).wait() == 2
    images = json.loads((output / "images.json").read_text())["images"]
    assert len(images) == 198 + 500
