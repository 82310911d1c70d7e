import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tool_runs import error_of, not_logged, run
from PIL import Image

from backbones import load_backbone
from backbones.classification.pretraining import PretrainConfig
from backbones.common.config import parse_config
from backbones.training.curves import read_curves
from backbones.training.recipe import OptimConfig
from detect.commands import evaluate_backbone, train_backbone

ROOT = Path(__file__).parents[2]
SMALL = ["--model.width", "0.25", "--batch_size", "4", "--workers", "0", "--device", "cpu"]

PAPER = OptimConfig(lr=0.045, momentum=0.9, decay=0.9, eps=1.0, clip_grad=2.0)
SUMMARY = replace(PAPER, lr=0.0045, eps=0.1)  # the values that circulate in summaries of the paper


def run_tool(*arguments):
    command = [sys.executable, "-m", "tools.train_backbone", *map(str, arguments)]
    # On a machine shared with other work, threads that wait for each other cost 20 times more.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(128 * label, 128 * label + 127, (32, 32, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / split / name / f"{index}.png")
    return root


def test_trains_resumes_and_saves_a_usable_network(data, tmp_path, monkeypatch, capsys):
    config = ROOT / "configs/backbone/inception_v3_79.yaml"
    folder = tmp_path / "run"
    arguments = ["--config", config, "--data.root", data, "--run", folder, *SMALL]
    first = run_tool(*arguments, "--epochs", "1")
    assert first.returncode == 0, first.stderr
    assert "best top-1" in first.stdout
    assert not_logged(folder, first.stdout, first.stderr) == []
    names = {file.name for file in folder.iterdir()}
    assert {"config.yaml", "log.txt", "curves.csv", "curves.png"} <= names
    assert {"best.safetensors", "last.safetensors"} <= names
    model = load_backbone(folder / "best.safetensors")
    assert model.spec.input_size == 79

    # The rest in this process, which has imported everything already. Another run is refused.
    weights = (folder / "last.safetensors").read_bytes()
    for key, value, message in (
        ("model.width", "0.5", "model.width was 0.25 and is 0.5 now"),
        ("model.variant", "inception_v3", "model.variant was inception_v3_79 and is inception_v3"),
        ("data.augment.flip", "false", "data.augment.flip was True and is False now"),
        ("label_smoothing", "0", "label_smoothing was 0.1 and is 0.0 now"),
    ):
        other = [f"--run={folder}", "--resume", "True", f"--{key}", value]
        found = error_of(train_backbone, *other, monkeypatch=monkeypatch, capsys=capsys)
        assert f"cannot resume {folder}: {message}" in found
    # With its own configuration it goes on.
    resumed = [f"--run={folder}", "--resume", "--epochs", "2"]
    assert run(train_backbone, *resumed, monkeypatch=monkeypatch) == 0
    assert "best top-1" in capsys.readouterr().out
    assert f"resumed {folder} at step 2" in (folder / "log.txt").read_text()
    assert (folder / "last.safetensors").read_bytes() != weights
    # And with data that have moved, where other labels are named.
    moved = shutil.copytree(data, tmp_path / "moved")
    (moved / "train/dark/0.png").rename(moved / "train/light/from_dark.png")
    resumed = [f"--run={folder}", "--resume", f"--data.root={moved}"]
    assert run(train_backbone, *resumed, monkeypatch=monkeypatch) == 0
    log = (folder / "log.txt").read_text()
    assert "labels of the training split are not those that the run began with" in log
    assert "labels of the validation split" not in log
    capsys.readouterr()

    # The same scores for averaged and raw weights as at the end of the training.
    report = tmp_path / "report.json"
    evaluate = ["--weights", folder, "--data.root", data, "--output", report]
    evaluate += ["--workers", "0", "--device", "cpu"]
    assert run(evaluate_backbone, *map(str, evaluate), monkeypatch=monkeypatch) == 0
    logged = {point.name: point.value for point in read_curves(folder / "curves.csv")}
    assert json.loads(report.read_text())["scores"] == {
        f"{folder} (averaged)": {"top1": logged["val/top1"], "top5": logged["val/top5"]},
        f"{folder} (raw)": {"top1": logged["val/top1_raw"], "top5": logged["val/top5_raw"]},
    }


def test_a_mistake_is_one_line_and_exit_2():
    """Of all that a process of its own prints, imports included."""
    result = run_tool("--optim.momentun", "1", "--device", "cpu")
    assert result.returncode == 2
    assert "unrecognized arguments: --optim.momentun" in result.stderr
    assert result.stderr.count("\n") == 1


def test_data_that_is_not_there_is_named(monkeypatch, capsys):
    arguments = ["--data.root", "nowhere", "--device", "cpu"]
    message = error_of(train_backbone, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "nowhere: found neither a folder train/CLASS nor shards" in message


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("inception_v3", "inception_v3", PAPER),
        ("inception_v3_151", "inception_v3_151", PAPER),
        ("inception_v3_79", "inception_v3_79", PAPER),
        ("inception_v3_summary", "inception_v3", SUMMARY),
    ],
)
def test_shipped_configs_are_the_papers(name, variant, expected):
    config = parse_config(PretrainConfig, ["--config", f"{ROOT}/configs/backbone/{name}.yaml"])
    optim = config.optim
    for option in ("momentum", "decay", "eps", "decay_rate", "decay_epochs"):
        assert optim.value(option) == expected.value(option), option
    for option in ("optimizer", "lr", "weight_decay", "clip_grad", "schedule", "ema_decay"):
        assert getattr(optim, option) == getattr(expected, option), option
    assert config.model.variant == variant
    assert (config.epochs, config.label_smoothing, config.aux_weight) == (100, 0.1, 0.3)


def test_an_error_in_a_worker_ends_the_run(tmp_path, monkeypatch, capsys):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "0.jpg").write_text("no image")
    arguments = ["--data.root", str(tmp_path), "--model.width", "0.25", "--device", "cpu"]
    arguments += ["--workers", "1", "--batch_size", "2"]
    arguments += ["--run", str(tmp_path / "run")]
    message = error_of(train_backbone, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "error: none of the 2 training images can be read" in message
