import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.saved import load_saved
from helpers.tiny_run import (
    BATCH,
    EPOCHS,
    EXAMPLES,
    NoisyShapes,
    bad_steps,
    collate,
    cross_entropy,
    train,
)

from backbones.common.errors import UserError
from backbones.data.sampler import EpochSampler, derive_seed, training_loader
from backbones.training.checkpoints import load_last_checkpoint
from backbones.training.config import TrainConfig
from backbones.training.curves import read_curves
from backbones.training.loop import MAX_SKIPPED, NonFiniteLossError, fit
from backbones.training.recipe import OptimConfig
from backbones.training.run_folder import RunFolder
from backbones.training.step import StepConfig, weights_in
from backbones.training.validation import Validation

STEPS = EPOCHS * (EXAMPLES // BATCH)
ROOT = Path(__file__).parents[3]


def curves(folder):
    return read_curves(folder / "curves.csv")


@pytest.mark.usefixtures("curves_are_drawn")
def test_the_run_learns_and_leaves_its_files(tmp_path):
    folder = tmp_path / "run"
    _, state = train(folder)
    assert state.step == STEPS
    assert state.best_metrics["top1"] > 0.8
    assert load_saved(folder / "best.safetensors").keys()
    names = {point.name for point in curves(folder)}
    scores = {"val/top1", "val/loss", "val/top1_raw", "val/loss_raw"}
    assert names == {"loss/class", "loss/total", "grad_norm", "lr", *scores}
    for name in ("config.yaml", "log.txt", "curves.png", "last.safetensors", "tensorboard"):
        assert (folder / name).exists(), name


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


def test_a_step_without_a_finite_loss_can_be_skipped(tmp_path, caplog):
    class Bad(NoisyShapes):
        """One example makes the running statistics of its batch infinite."""

        def __getitem__(self, key):
            image, label, name = super().__getitem__(key)
            return (image * float("inf") if key == (1, 7) else image), label, name

    skip = StepConfig(on_non_finite="skip")
    model, state = train(tmp_path / "run", dataset=Bad(), step=skip)
    assert state.step == STEPS
    assert state.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert state.best_metrics["top1"] > 0.8
    assert "skipped (1 so far)" in caplog.text
    assert "shape_7.png" in (tmp_path / "run/log.txt").read_text()


def test_skipping_ends_when_nothing_else_comes(tmp_path):
    skip = StepConfig(on_non_finite="skip")
    with pytest.raises(NonFiniteLossError, match=f"step {5 + MAX_SKIPPED}: loss/class is nan"):
        train(tmp_path / "run", loss_fn=bad_steps(*range(5, 50)), step=skip)


def test_an_error_ends_the_program_though_workers_run(tmp_path):
    """They ignore SIGTERM, by which Python would end them; it would wait for ever."""
    script = (
        "import sys; from pathlib import Path; from helpers.tiny_run import bad_steps, train; "
        "from backbones.common.cli import command; "
        "command(lambda: train(Path(sys.argv[1]), workers=2, loss_fn=bad_steps(3)))()"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
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


def test_in_fp16_too_a_step_without_a_finite_loss_can_be_skipped(tmp_path):
    skip = StepConfig(on_non_finite="skip")
    _, state = train(tmp_path / "run", precision="fp16", loss_fn=bad_steps(5, 6), step=skip)
    assert (state.step, state.skipped_steps) == (STEPS, 2)
    assert state.best_metrics["top1"] > 0.8


@pytest.mark.large
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_trains_to_the_same_weights(tmp_path):
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        # Small, for compiling takes its time.
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        step = StepConfig(compile=compiled)
        train(tmp_path / str(compiled), model=model, epochs=1, step=step)
        weights.append(model.state_dict())
        assert (len(torch._dynamo.utils.counters["stats"]) > 0) == compiled
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size 4 is no multiple of step.accumulate 3"):
        train(tmp_path / "run", step=StepConfig(accumulate=3))


def test_sync_batch_norm_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match="sync_batch_norm needs a GPU"):
        train(tmp_path / "run", step=StepConfig(sync_batch_norm=True))


def test_bf16_trains(tmp_path):
    _, state = train(tmp_path / "run", precision="bf16")
    assert state.best_metrics["top1"] > 0.8


def test_sampler_sees_each_example_once_an_epoch_in_changing_order():
    def orders(seed: int) -> list[list[int]]:
        sampler = EpochSampler(12, batch_size=4, epochs=3, seed=seed)
        assert [len(batch) for batch in sampler] == [4] * 9
        assert len(sampler) == 9
        keys = [key for batch in sampler for key in batch]
        return [[index for epoch, index in keys if epoch == wanted] for wanted in range(3)]

    one, again, other = orders(seed=1), orders(seed=1), orders(seed=2)
    assert all(sorted(order) == list(range(12)) for order in one)
    assert one[0] != one[1] != one[2]
    assert one == again != other


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
            fit(model, loader, cross_entropy, TrainConfig("", 1, 4), run)
        assert str(raised.value) == "pictures/a.png: is not what it should be"


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
        config = TrainConfig("", 1, 4, optim, precision="fp32")
        validation = Validation(evaluate, evaluate_raw=evaluate_raw)
        state = fit(model, loader, cross_entropy, config, run, validation)
    assert model.training
    recorded = {p.name: p.value for p in curves(tmp_path / "run") if p.name.startswith("val/")}
    assert list(recorded) == names
    weights = weights_in(load_last_checkpoint(tmp_path / "run/checkpoints"))
    norms = {kind: state["0.weight"].norm().item() for kind, state in weights.items()}
    assert state.metrics == {"norm": norms["raw" if ema_decay is None else "averaged"]}
    assert recorded["val/norm"] == state.metrics["norm"]
    if "val/norm_raw" in names:
        assert recorded["val/norm_raw"] == norms["raw"] != norms["averaged"]


@pytest.mark.parametrize(("ema_decay", "score"), [(0.9, 0.0), (0.9, 0.1), (None, 0.0)])
def test_a_first_score_of_0_is_explained_where_weights_are_averaged(ema_decay, score, tmp_path):
    loader = training_loader(
        NoisyShapes(), EpochSampler(8, 4, epochs=3, seed=0), workers=0, collate_fn=collate
    )
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    optim = OptimConfig(ema_decay=ema_decay)
    with RunFolder(tmp_path / "run", optim) as run:
        validation = Validation(lambda model: {"AP": score}, best_metric="AP")
        fit(model, loader, cross_entropy, TrainConfig("", 3, 4, optim), run, validation)
    log = (tmp_path / "run/log.txt").read_text()
    explained = "AP is 0 as yet: it is that of the running average of the weights over some 10 "
    assert log.count(explained) == (ema_decay is not None and score == 0)


def test_metrics_are_recorded_every_so_many_epochs_and_at_the_end(tmp_path, caplog):
    caplog.set_level("INFO")
    loader = training_loader(
        NoisyShapes(), EpochSampler(8, 4, epochs=5, seed=0), workers=0, collate_fn=collate
    )
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8), torch.nn.Flatten())
    optim = OptimConfig(
        lr=0.5, schedule="staircase", decay_rate=0.1, decay_epochs=2, ema_decay=None
    )
    with RunFolder(tmp_path / "run", optim) as run:
        config = TrainConfig("", 5, 4, optim, eval_every=2)
        fit(model, loader, cross_entropy, config, run, Validation(lambda model: {"one": 1.0}))
    points = curves(tmp_path / "run")
    assert [point.epoch for point in points if point.name == "val/one"] == [2, 4, 5]
    assert caplog.text.count("scores come every 2 epochs and after the last: eval_every") == 1
    assert "epoch 5/5: one 1.0000" in caplog.text
    rates = [point.value for point in points if point.name == "lr"]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_derived_seeds_differ():
    seeds = {derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
