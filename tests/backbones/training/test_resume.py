"""A run that was broken off and resumed ends as the unbroken one."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.saved import load_saved
from helpers.tiny_run import (
    BATCH,
    EPOCHS,
    EXAMPLES,
    OPTIM,
    NoisyShapes,
    collate,
    cross_entropy,
    train,
)

from backbones.common.errors import UserError
from backbones.data.sampler import EpochSampler, training_loader
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.config import TrainConfig
from backbones.training.curves import read_curves
from backbones.training.loop import fit
from backbones.training.recipe import OptimConfig
from backbones.training.run_folder import RunFolder
from backbones.training.step import StepConfig

STEPS = EPOCHS * (EXAMPLES // BATCH)
ROOT = Path(__file__).parents[3]


class Stop(Exception):
    pass


def stop_at(step):
    """The loss function, which breaks off at its step-th call."""
    calls = iter(range(10**6))

    def loss_fn(model, batch):
        if next(calls) == step:
            raise Stop
        return cross_entropy(model, batch)

    return loss_fn


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def curves(folder):
    return read_curves(folder / "curves.csv")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    model, state = train(folder)
    return folder, model.state_dict(), state


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (11, 0), (17, 2)])
def test_resume_in_the_middle_of_an_epoch_is_exact(unbroken, tmp_path, step, workers):
    folder, weights, state = unbroken
    with pytest.raises(Stop):
        train(tmp_path / "run", loss_fn=stop_at(step))
    model, resumed = train(tmp_path / "run", resume=True, workers=workers)
    assert_same(model.state_dict(), weights)
    assert_same(
        load_saved(tmp_path / "run/last.safetensors"), load_saved(folder / "last.safetensors")
    )
    assert curves(tmp_path / "run") == curves(folder)
    assert resumed == state


def test_resume_with_rare_checkpoints_drops_the_curves_beyond(unbroken, tmp_path):
    folder, weights, _ = unbroken
    with pytest.raises(Stop):
        train(tmp_path / "run", loss_fn=stop_at(16), checkpoint_minutes=60)
    assert load_last_checkpoint(tmp_path / "run/checkpoints")["state"]["step"] == 11
    model, _ = train(tmp_path / "run", resume=True, checkpoint_minutes=60)
    assert_same(model.state_dict(), weights)
    assert curves(tmp_path / "run") == curves(folder)


def test_resuming_a_finished_run_returns_its_metrics(tmp_path):
    _, first = train(tmp_path / "again", epochs=1)
    _, second = train(tmp_path / "again", epochs=1, resume=True)
    assert first == second


def start(folder, workers, *stop):
    command = [sys.executable, str(ROOT / "tests/helpers/tiny_run.py")]
    command += [str(folder), "0.1", str(workers), *map(str, stop)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def wait_for_checkpoint(folder, process, beyond=0):
    """Until there is one of a step beyond."""
    deadline = time.monotonic() + 60
    while newest_step(folder) <= beyond:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def newest_step(folder):
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/step_*")), default=0)


def wait_until_stopped(process):
    deadline = time.monotonic() + 60
    while True:
        pid, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
        if pid:
            assert os.WIFSTOPPED(status), process.stderr.read().decode()
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leaves(value, path=""):
    """What nested containers hold, by path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in leaves(part, f"{path}/{key}").items()}
    return {path: value}


def differing(a, b):
    """Paths at which two checkpoints are not bit for bit the same."""
    a, b = leaves(a), leaves(b)
    same = {
        path: torch.equal(a[path], b[path]) if torch.is_tensor(a[path]) else a[path] == b[path]
        for path in a.keys() & b.keys()
    }
    return sorted(path for path in a.keys() | b.keys() if not same.get(path, False))


def test_a_run_killed_three_times_resumes_exactly(unbroken, tmp_path):
    """Once of the three while it writes a checkpoint."""
    seed = random.randrange(2**32)
    message = f"kills of random.Random({seed})"
    moments = random.Random(seed)
    run, expected = tmp_path / "run", unbroken[0]
    writing = moments.randrange(3)
    for number in range(3):
        before = newest_step(run)
        stop = (moments.randint(1, 6), moments.random()) if number == writing else ()
        process = start(run, 1, *stop)
        try:
            if stop:
                wait_until_stopped(process)
            else:
                wait_for_checkpoint(run, process, before)
                time.sleep(moments.uniform(0, 0.6))
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL, message
        assert before <= newest_step(run) < STEPS, message
        if stop:
            (unfinished,) = run.glob("checkpoints/.step_*.tmp")
            checkpoint = unfinished.name.removeprefix(".").rpartition(".pt")[0] + ".pt"
            assert not unfinished.with_name(checkpoint).exists(), message
    train(run, resume=True)
    for name in ("best.safetensors", "last.safetensors", f"checkpoints/step_{STEPS:010d}.pt"):
        assert differing(load_saved(run / name), load_saved(expected / name)) == [], message
    assert curves(run) == curves(expected), message
    assert list(run.rglob(".*")) == [], message


def test_a_signal_stops_after_the_step_with_a_checkpoint(tmp_path):
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130}
    processes = {number: start(tmp_path / number.name, workers=1) for number in codes}
    for number, process in processes.items():
        wait_for_checkpoint(tmp_path / number.name, process)
        process.send_signal(number)
        time.sleep(0.02)
        process.send_signal(number)  # as `timeout` does, which signals the group as well
    for number, process in processes.items():
        assert process.wait(timeout=60) == codes[number]
        log = (tmp_path / number.name / "log.txt").read_text()
        step = load_last_checkpoint(tmp_path / number.name / "checkpoints")["state"]["step"]
        assert f"stopped at step {step}; continue with --run " in log


def test_a_killed_worker_is_a_line_and_no_standstill(tmp_path):
    process = start(tmp_path / "run", 2)
    wait_for_checkpoint(tmp_path / "run", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    readers = [
        int(child)
        for child in children
        if b"tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(readers) == 2
    os.kill(readers[0], signal.SIGKILL)
    assert process.wait(timeout=30) == 2
    lines = process.stderr.read().decode().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "a process that reads images was ended" in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_another_batch_size_cannot_resume(tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr("helpers.tiny_run.BATCH", 8)
    with pytest.raises(UserError, match="global_batch was 4 and is 8 now"):
        train(tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "run", epochs=1)


def test_resuming_with_another_optimiser_is_refused(tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr("helpers.tiny_run.OPTIM", replace(OPTIM, weight_decay=0.1))
    with pytest.raises(UserError, match=r"weight_decay was 4e-05 and is 0\.1 now"):
        train(tmp_path / "run", epochs=2, resume=True)


def test_resuming_in_another_precision_is_refused(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="precision was fp32 and is bf16 now"):
        train(tmp_path / "run", resume=True, precision="bf16")


def test_resuming_with_other_parts_of_a_step_is_warned_of(tmp_path, caplog):
    train(tmp_path / "run", epochs=1)
    train(tmp_path / "run", resume=True, epochs=2, step=StepConfig(accumulate=2))
    assert "with a step in 1 process of 2 parts, the run began with 1 process: " in caplog.text


def test_fewer_epochs_than_a_run_has_had_are_refused(tmp_path):
    train(tmp_path / "run", epochs=2)
    with pytest.raises(UserError, match="it has taken 22 steps, and 1 epochs are 11: give more"):
        train(tmp_path / "run", epochs=1, resume=True)


def test_resuming_with_other_classes_is_refused_and_with_other_annotations_named(tmp_path, caplog):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())

    def go_on(epochs: int, classes: list[str], digest: str) -> None:
        sampler = EpochSampler(8, 4, epochs=epochs, seed=0)
        loader = training_loader(NoisyShapes(), sampler, workers=0, collate_fn=collate)
        with RunFolder(tmp_path / "run", OptimConfig(), resume=epochs > 1) as run:
            told = {"classes": classes, "annotations": digest}
            fit(model, loader, cross_entropy, TrainConfig("", 1, 4), run, data=told)

    go_on(1, ["a", "b"], "1")
    with pytest.raises(UserError, match=r"classes was \['a', 'b'\] and is \['b', 'a'\] now"):
        go_on(2, ["b", "a"], "1")
    go_on(2, ["a", "b"], "1")
    assert "boxes or labels" not in caplog.text
    go_on(3, ["a", "b"], "2")
    assert "boxes or labels of the training split are not those" in caplog.text


def test_resuming_with_another_dataset_is_refused(tmp_path):
    """Also where both make as many steps in an epoch."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    for resume, sizes in ((False, (8, 4)), (True, (9, 4))):
        sampler = EpochSampler(*sizes, epochs=1 + resume, seed=0)
        assert sampler.steps_per_epoch == 2
        loader = training_loader(NoisyShapes(), sampler, workers=0, collate_fn=collate)
        with RunFolder(tmp_path / "run", OptimConfig(), resume=resume) as run:
            if not resume:
                fit(model, loader, cross_entropy, TrainConfig("", 1, 4), run)
                continue
            with pytest.raises(UserError, match="num_examples was 8 and is 9 now"):
                fit(model, loader, cross_entropy, TrainConfig("", 1, 4), run)
