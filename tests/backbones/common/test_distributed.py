import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.distributed_run import train
from helpers.saved import load_saved

from backbones.common import distributed
from backbones.common.errors import UserError
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.curves import read_curves

HERE = Path(__file__).parents[2] / "helpers"
ROOT = HERE.parents[1]


def torchrun(script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(HERE / script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def test_two_processes_train_like_one_with_the_doubled_batch(tmp_path):
    process = torchrun("distributed_run.py", tmp_path / "two")
    train(tmp_path / "one")
    train(tmp_path / "parts", accumulate=2)
    output = finish(process)
    one = load_saved(tmp_path / "one/last.safetensors")
    for name in ("two", "parts"):
        other = load_saved(tmp_path / name / "last.safetensors")
        assert other["metrics"] == one["metrics"]
        for key, expected in one["state"].items():
            torch.testing.assert_close(other["state"][key], expected, rtol=0, atol=1e-5)
    curves = [read_curves(tmp_path / name / "curves.csv") for name in ("one", "two", "parts")]
    for point, *others in zip(*curves, strict=True):
        for other in others:
            assert other[:3] == point[:3]
            assert other.value == pytest.approx(point.value, abs=1e-5)

    # One process speaks, but says what the other saw.
    assert output.count("2 processes, the main one on cpu") == 1
    assert output.count("epoch 1/1: top1") == 1
    assert output.count("left out 11 unreadable images, first: 0.jpg: broken") == 1
    skipped = [skipped_images((tmp_path / name / "log.txt").read_text()) for name in ("one", "two")]
    assert sorted(skipped[0]) == sorted(skipped[1]) == sorted(skipped_images(output))
    assert len(skipped[0]) >= 8  # three of the eleven can be in no batch


def skipped_images(text):
    return re.findall(r"skipped image \d+: (\S+)", text)


def test_a_lost_process_ends_the_run_and_resuming_is_exact(tmp_path):
    unbroken = torchrun("tiny_run.py", tmp_path / "unbroken", 0, 0)
    broken = torchrun("tiny_run.py", tmp_path / "broken", 0.1, 1)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("broken/checkpoints/step_*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    os.kill(second_process(tmp_path / "broken"), signal.SIGKILL)
    output, _ = broken.communicate(timeout=60)
    assert broken.returncode != 0
    assert 'Traceback (most recent call last):\n  File "' + str(HERE) not in output
    before = load_last_checkpoint(tmp_path / "broken/checkpoints")["state"]["step"]
    finish(unbroken)
    output = finish(torchrun("tiny_run.py", tmp_path / "broken", 0, 0))
    assert output.count(f"resumed {tmp_path / 'broken'} at step {before}\n") == 1
    expected = load_last_checkpoint(tmp_path / "unbroken/checkpoints")
    resumed = load_last_checkpoint(tmp_path / "broken/checkpoints")
    assert 0 < before < resumed["state"]["step"] == expected["state"]["step"]
    for part in ("model", "ema"):
        for name, tensor in expected[part].items():
            assert torch.equal(resumed[part][name], tensor), f"{part} {name}"
    assert read_curves(tmp_path / "broken/curves.csv") == read_curves(
        tmp_path / "unbroken/curves.csv"
    )


def second_process(folder):
    """The process of rank 1, by the environment that torchrun gave it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
            parent = (entry / "stat").read_text().split()[3]
            of_parent = Path(f"/proc/{parent}/environ").read_bytes()
        except OSError:
            continue
        # Not the workers of its loader, which inherit both.
        is_first = b"\0RANK=1\0" not in b"\0" + of_parent
        if str(folder).encode() in arguments and b"RANK=1" in environment and is_first:
            return int(entry.name)
    raise AssertionError("rank 1 is not running")


SLURM = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "node7",
}


def test_the_launcher_tells_who_this_process_is(monkeypatch):
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    place = distributed._place
    assert place({}) is None
    assert place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (3, 8, 1)
    # A batch script has the job's number of tasks, but is a process of its own.
    assert place({"SLURM_NTASKS": "16", "SLURM_PROCID": "0"}) is None
    assert "MASTER_ADDR" not in os.environ
    assert place(SLURM) == (9, 16, 1)
    assert os.environ["MASTER_ADDR"] == "node7"
    assert os.environ["MASTER_PORT"] == "24242"
    # torchrun under srun: torchrun's word counts.
    assert place(SLURM | {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == (3, 8, 1)


def test_a_broken_environment_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="LOCAL_RANK: expected a number, got ''"):
        distributed._place({"RANK": "0", "WORLD_SIZE": "2"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="set MASTER_ADDR to the first one"):
        distributed._place(SLURM | {"SLURM_STEP_NODELIST": "node[7-9]"})


def test_alone_everything_is_a_plain_function():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.sum_over_processes({"a": 2.5}) == {"a": 2.5}
    assert distributed.gather("x") == ["x"]
    assert distributed.call_on_main(lambda: 3) == 3
