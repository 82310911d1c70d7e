"""Training in several processes, as the tools start it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from helpers.tiny_detector import TINY
from helpers.tool_runs import not_logged, run

from backbones.classification import pretraining
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.step import StepConfig
from detect.commands import train_detector
from detect.config import DetectorConfig
from detect.data import make_digits
from detect.training import train

ROOT = Path(__file__).parents[2]

LONG = TINY | {
    "data": {"format": "coco", "train": "train", "val": None},
    "epochs": 16,
    "batch_size": 8,
    "workers": 1,
    "precision": "fp32",
}


def test_ctrl_c_stops_all_with_a_checkpoint_that_one_process_continues(tmp_path, monkeypatch):
    data = make_digits(tmp_path / "digits", train=8, val=2, image_size=128)
    config, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(LONG))
    arguments = ["--config", str(config), "--data.root", str(data), "--run", str(folder)]
    command = [sys.executable, "-m", "tools.train_detector", *arguments, "--device", "cpu"]
    # As many processes as there are cores for it, which this variable limits.
    two = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step_*")):
        assert time.monotonic() < deadline
        assert two.poll() is None, two.communicate()
        time.sleep(0.05)
    for each in processes_of(two.pid):
        # What reads for it was forked from it: a new Python would take seconds to begin.
        assert [command_line(reader) for reader in processes_of(each)] == [command_line(each)]
    two.send_signal(signal.SIGINT)
    out, err = two.communicate(timeout=60)
    assert two.returncode == 130, err
    assert not out
    assert "Traceback" not in err
    for line in (
        "starting 2 processes",
        "8 training images",
        "stopping after this step",
        "interrupted",
    ):
        assert err.count(line) == 1, err
    assert not_logged(folder, out, err) == []
    checkpoint = load_last_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    step = checkpoint["state"]["step"]
    assert 0 < step < 16
    assert f"stopped at step {step};" in err
    # The batch of the configuration is that of both together.
    assert checkpoint["global_batch"] == 8

    torch.set_num_threads(1)
    assert run(train_detector, *arguments, "--resume", "true", monkeypatch=monkeypatch) == 0
    log = (folder / "log.txt").read_text()
    assert f"resumed {folder} at step {step}" in log
    # What the first command said before it had a log is there from it, and not again.
    assert log.count("starting 2 processes") == 1
    assert log.count("curves.png") == 1
    after = load_last_checkpoint(folder / "checkpoints")
    assert after is not None
    assert after["state"]["step"] == 16


def processes_of(parent: int) -> list[int]:
    """Those that a process has started to train or to read, by multiprocessing."""
    started = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in started if b"spawn_main" in command_line(int(child))]


def command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def test_both_trainers_share_a_batch_among_processes(monkeypatch, threads_of_torch):
    """Parts of a batch that normalisation has to do with are not too small."""
    for module in (train, pretraining):
        monkeypatch.setattr(module, "run_in_processes", lambda *arguments: arguments)
    torch.set_num_threads(4)
    detector = DetectorConfig(batch_size=16, device="cpu")
    assert train.train_in_processes(detector) == (train.train_detector, detector, 4)
    assert train.train_in_processes(replace(detector, batch_size=12))[2] == 3
    assert train.train_in_processes(replace(detector, batch_size=8))[2] == 2
    assert train.train_in_processes(replace(detector, processes=1))[2] == 1
    backbone = pretraining.PretrainConfig(batch_size=64, device="cpu")
    assert pretraining.pretrain_in_processes(backbone) == (pretraining.pretrain, backbone, 4)
    parts = replace(backbone, step=StepConfig(accumulate=2))
    assert pretraining.pretrain_in_processes(parts)[2] == 2
