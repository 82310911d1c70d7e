import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import BATCH, EPOCHS, EXAMPLES, NoisyShapes, collate, cross_entropy, train

from backbones.checkpoints import load_last_checkpoint, save_checkpoint
from backbones.errors import UserError
from backbones.order import EpochSampler, derive_seed, training_loader
from backbones.recipe import OptimConfig
from backbones.runs import RunFolder, read_curves
from backbones.stepping import StepConfig, weights_in
from backbones.training import MAX_SKIPPED, NonFiniteLossError, fit

STEPS = EPOCHS * (EXAMPLES // BATCH)
ROOT = Path(__file__).parents[2]


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


def test_the_run_learns_and_leaves_its_files(unbroken):
    folder, _, state = unbroken
    assert state.step == STEPS
    assert state.best_metrics["top1"] > 0.8
    assert torch.load(folder / "best.safetensors").keys()
    names = {point.name for point in curves(folder)}
    assert names == {"loss/class", "loss/total", "grad_norm", "lr", "val/top1", "val/top1_raw"}
    for name in ("config.yaml", "log.txt", "curves.png", "last.safetensors", "tensorboard"):
        assert (folder / name).exists(), name


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (11, 0), (17, 2)])
def test_resume_in_the_middle_of_an_epoch_is_exact(unbroken, tmp_path, step, workers):
    folder, weights, state = unbroken
    with pytest.raises(Stop):
        train(tmp_path / "run", loss_fn=stop_at(step))
    model, resumed = train(tmp_path / "run", resume=True, workers=workers)
    assert_same(model.state_dict(), weights)
    assert_same(
        torch.load(tmp_path / "run/last.safetensors"), torch.load(folder / "last.safetensors")
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
    command = [sys.executable, str(Path(__file__).with_name("tiny_run.py"))]
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
        assert differing(torch.load(run / name), torch.load(expected / name)) == [], message
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
        assert f"stopped at step {step}; continue with --resume true" in log


def test_a_loss_that_is_not_finite_names_step_term_and_images(tmp_path):
    def loss_fn(model, batch):
        loss = cross_entropy(model, batch)["class"]
        return {"class": loss, "aux": loss * float("nan")}

    with pytest.raises(NonFiniteLossError, match=r"step 0: loss/aux is nan .*shape_\d+\.png"):
        train(tmp_path / "run", loss_fn=loss_fn)
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("shape_") >= BATCH


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    def loss_fn(model, batch):
        weight = model[0].weight
        return {"root": torch.sqrt((weight * 0).abs().sum())}

    with pytest.raises(NonFiniteLossError, match="grad_norm is nan"):
        train(tmp_path / "run", loss_fn=loss_fn)


def bad_steps(*steps):
    """The loss function, which is not a number at the given calls."""
    calls = iter(range(10**6))

    def loss_fn(model, batch):
        loss = cross_entropy(model, batch)["class"]
        return {"class": loss * float("nan") if next(calls) in steps else loss}

    return loss_fn


def test_a_step_without_a_finite_loss_can_be_skipped(tmp_path, caplog):
    class Bad(NoisyShapes):
        """One example makes the running statistics of its batch infinite."""

        def __getitem__(self, key):
            image, label, name = super().__getitem__(key)
            return (image * float("inf") if key == (1, 7) else image), label, name

    skip = StepConfig(on_non_finite="skip")
    model, state = train(tmp_path / "run", dataset=Bad(), step_config=skip)
    assert state.step == STEPS
    assert state.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert state.best_metrics["top1"] > 0.8
    assert "skipped (1 so far)" in caplog.text
    assert "shape_7.png" in (tmp_path / "run/log.txt").read_text()


def test_skipping_ends_when_nothing_else_comes(tmp_path):
    skip = StepConfig(on_non_finite="skip")
    with pytest.raises(NonFiniteLossError, match=f"step {5 + MAX_SKIPPED}: loss/class is nan"):
        train(tmp_path / "run", loss_fn=bad_steps(*range(5, 50)), step_config=skip)


def test_an_error_ends_the_program_though_workers_run(tmp_path):
    """They ignore SIGTERM, by which Python would end them; it would wait for ever."""
    script = (
        "import sys; from pathlib import Path; from tiny_run import train; "
        "from backbones.cli import run_tool; from test_training import bad_steps; "
        "run_tool(lambda: train(Path(sys.argv[1]), workers=2, loss_fn=bad_steps(3)))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert result.returncode == 2, result.stderr
    assert "error: step 3: loss/class is nan" in result.stderr


def test_fp16_lowers_its_scale_until_gradients_fit(tmp_path):
    """The first scale, 65536, is far too large for a loss of 1000."""
    scaled = []

    def loss_fn(model, batch):
        scaled.append(1)
        return {"class": 1000 * cross_entropy(model, batch)["class"]}

    _, state = train(tmp_path / "run", precision="fp16", loss_fn=loss_fn)
    assert state.step == STEPS
    assert state.skipped_steps == 0
    checkpoint = load_last_checkpoint(tmp_path / "run/checkpoints")
    assert checkpoint["scaler"]["scale"] < 65536
    assert all(point.value < 1e6 for point in curves(tmp_path / "run"))


@pytest.mark.large
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_to_the_same_weights(tmp_path):
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        # Small, for compiling takes its time.
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        step = StepConfig(compile=compiled)
        train(tmp_path / str(compiled), model=model, epochs=1, step_config=step)
        weights.append(model.state_dict())
        assert (len(torch._dynamo.utils.counters["stats"]) > 0) == compiled
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(tmp_path / "run", epochs=1, keep_checkpoints=3)
    steps = sorted(int(path.stem[5:]) for path in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [9, 10, 11]


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size 4 is no multiple of step.accumulate 3"):
        train(tmp_path / "run", step_config=StepConfig(accumulate=3))


def test_sync_batch_norm_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="sync_batch_norm needs a GPU"):
        train(tmp_path / "run", step_config=StepConfig(sync_batch_norm=True))


def test_another_batch_size_cannot_resume(tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr("tiny_run.BATCH", 8)
    with pytest.raises(UserError, match="global_batch was 4 and is 8 now"):
        train(tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="already holds a run"):
        train(tmp_path / "run", epochs=1)


def test_bf16_trains(tmp_path):
    _, state = train(tmp_path / "run", precision="bf16")
    assert state.best_metrics["top1"] > 0.8


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.full((1000,), float(step)), "step": step})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    files[-1].write_bytes(files[-1].read_bytes()[:1000])
    checkpoint = load_last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 2
    assert "cannot read checkpoint" in caplog.text


def test_sampler_sees_each_example_once_an_epoch_in_changing_order():
    sampler = EpochSampler(12, 4, epochs=3, seed=1)
    keys = [key for batch in sampler for key in batch]
    orders = [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert len(sampler) == 9


def test_sampler_resumes_anywhere():
    whole = list(EpochSampler(13, 4, epochs=3, seed=1))
    for step in range(len(whole)):
        sampler = EpochSampler(13, 4, epochs=3, seed=1)
        sampler.start_step = step
        assert list(sampler) == whole[step:]


def test_ranks_share_the_batches_of_one_process():
    whole = list(EpochSampler(20, 6, epochs=2, seed=1))
    parts = [list(EpochSampler(20, 3, epochs=2, seed=1, rank=r, world_size=2)) for r in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(first + second)
        assert len(first) == len(second) == 3


def test_sampler_refuses_a_batch_larger_than_the_data():
    with pytest.raises(UserError, match="batch_size 8 is larger than the training set"):
        EpochSampler(5, 8, epochs=1, seed=0)


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, {"step": step})
        path.write_bytes(b"bad")
    with pytest.raises(UserError, match="none of the 2 checkpoints can be read"):
        load_last_checkpoint(tmp_path)


def test_a_damaged_checkpoint_does_not_push_out_newer_ones(tmp_path):
    for step in (1, 20):
        save_checkpoint(tmp_path, step, {"step": step})
    (tmp_path / "step_0000000020.pt").write_bytes(b"bad")
    load_last_checkpoint(tmp_path)
    for step in (2, 3):
        save_checkpoint(tmp_path, step, {"step": step})
    checkpoint = load_last_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint["step"] == 3


def test_an_error_in_a_worker_is_told_without_its_traceback(tmp_path):
    class Failing(NoisyShapes):
        def __getitem__(self, key):
            raise UserError("pictures/a.png: is not what it should be")

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    sampler = EpochSampler(8, 4, epochs=1, seed=0)
    for workers in (0, 1):
        loader = training_loader(Failing(), sampler, workers=workers, collate_fn=collate)
        with (
            RunFolder(tmp_path / str(workers), OptimConfig(), resume=False) as run,
            pytest.raises(UserError) as raised,
        ):
            fit(model, loader, cross_entropy, OptimConfig(), run)
        assert str(raised.value) == "pictures/a.png: is not what it should be"


def test_resuming_with_another_optimiser_is_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    for resume, optim in ((False, OptimConfig()), (True, OptimConfig(weight_decay=0.1))):
        sampler = EpochSampler(8, 4, epochs=1 + resume, seed=0)
        loader = training_loader(NoisyShapes(), sampler, workers=0, collate_fn=collate)
        with RunFolder(tmp_path / "run", optim, resume=resume) as run:
            if not resume:
                fit(model, loader, cross_entropy, optim, run)
                continue
            with pytest.raises(UserError, match=r"optim.weight_decay was 4e-05 and is 0.1 now"):
                fit(model, loader, cross_entropy, optim, run)
    # The run is still the one it was.
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["weight_decay"] == 4e-5


@pytest.mark.parametrize(
    ("ema_decay", "evaluate_raw", "names"),
    [
        (0.9, True, ["val/norm", "val/norm_raw"]),
        (0.9, False, ["val/norm"]),
        (None, True, ["val/norm"]),
    ],
)
def test_raw_weights_are_scored_beside_averaged_ones(ema_decay, evaluate_raw, names, tmp_path):
    def evaluate(model):
        assert not model.training
        return {"norm": model[0].weight.norm().item()}

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    loader = training_loader(
        NoisyShapes(), EpochSampler(8, 4, epochs=1, seed=0), workers=0, collate_fn=collate
    )
    optim = OptimConfig(ema_decay=ema_decay)
    with RunFolder(tmp_path / "run", optim) as run:
        state = fit(
            *(model, loader, cross_entropy, optim, run),
            evaluate=evaluate,
            evaluate_raw=evaluate_raw,
        )
    assert model.training
    recorded = {p.name: p.value for p in curves(tmp_path / "run") if p.name.startswith("val/")}
    assert list(recorded) == names
    weights = weights_in(load_last_checkpoint(tmp_path / "run/checkpoints"))
    norms = {kind: state["0.weight"].norm().item() for kind, state in weights.items()}
    assert state.metrics == {"norm": norms["raw" if ema_decay is None else "averaged"]}
    assert recorded["val/norm"] == state.metrics["norm"]
    if "val/norm_raw" in names:
        assert recorded["val/norm_raw"] == norms["raw"] != norms["averaged"]


def test_resuming_with_another_dataset_is_refused(tmp_path):
    """Also where both make as many steps in an epoch."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    for resume, sizes in ((False, (8, 4)), (True, (9, 4))):
        sampler = EpochSampler(*sizes, epochs=1 + resume, seed=0)
        assert sampler.steps_per_epoch == 2
        loader = training_loader(NoisyShapes(), sampler, workers=0, collate_fn=collate)
        with RunFolder(tmp_path / "run", OptimConfig(), resume=resume) as run:
            if not resume:
                fit(model, loader, cross_entropy, OptimConfig(), run)
                continue
            with pytest.raises(UserError, match="num_examples was 8 and is 9 now"):
                fit(model, loader, cross_entropy, OptimConfig(), run)


def test_derived_seeds_differ():
    seeds = {derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
