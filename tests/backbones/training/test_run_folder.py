import logging
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest
import yaml
from helpers.full_disk import full_disk
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from backbones.common.config import load_config
from backbones.common.errors import UserError
from backbones.common.files import atomic_write
from backbones.training.curves import CurvePoint, draw_curves, read_curves
from backbones.training.run_folder import RunFolder, weights_line


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    resume: bool = False


def make_run(path):
    with RunFolder(path, Config()) as run:
        run.open_curves(0)
        for step in (10, 20, 30):
            run.record(step, step / 20, {"loss/class": 1 / step, "val/top1": 0.5})
        logging.getLogger("backbones.anything").info("a message")
        run.draw_curves()


def test_a_single_point_is_seen(tmp_path):
    draw_curves([CurvePoint(50, 1.0, "val/AP", 0.3)], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(np.int64)
    left = pixels[:, : pixels.shape[1] * 2 // 3]  # without the legend
    assert (left.max(axis=2) - left.min(axis=2) > 60).sum() > 50


def test_a_threshold_is_no_curve_among_scores(tmp_path):
    points = [CurvePoint(50, 1.0, "val/F1", 0.3)]
    draw_curves(points, tmp_path / "without.png")
    draw_curves([*points, CurvePoint(50, 1.0, "val/score_thresh", 0.9)], tmp_path / "with.png")
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "without.png").read_bytes()


@pytest.mark.usefixtures("curves_are_drawn")
def test_folder_holds_config_log_curves(tmp_path):
    make_run(tmp_path / "a/run")
    folder = tmp_path / "a/run"
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {"lr": 0.1, "resume": False}
    assert "INFO a message" in (folder / "log.txt").read_text()
    points = read_curves(folder / "curves.csv")
    assert points[0] == CurvePoint(10, 0.5, "loss/class", 0.1)
    assert len(points) == 6
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 800
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/class")] == [10, 20, 30]


def test_a_second_run_needs_resume(tmp_path):
    make_run(tmp_path)
    with pytest.raises(UserError, match=r"holds a run, by its config.yaml: continue it with --res"):
        RunFolder(tmp_path, Config())


@pytest.mark.parametrize("resume", [False, "auto", True])
def test_nothing_that_a_run_may_have_left_is_overwritten(tmp_path, resume):
    (tmp_path / "last.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"last.safetensors would be overwritten"):
        RunFolder(tmp_path, Config(), resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors"]


def test_weights_that_are_gone_are_not_named_as_there(tmp_path):
    path = tmp_path / "best.safetensors"
    assert weights_line(path) == f"weights: {path} (deleted since the run ended)"
    path.touch()
    assert weights_line(path) == f"weights: {path}"


def test_checkpoints_without_a_configuration_are_a_run(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step_9.pt").write_bytes(b"")
    with pytest.raises(
        UserError, match="already holds a run, by its checkpoints: continue it with"
    ):
        RunFolder(tmp_path, Config())


def test_resuming_starts_a_run_only_where_that_is_asked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("mistyped", "empty"):
        with pytest.raises(UserError, match=f"--resume: .*{name} holds no run: correct --run"):
            RunFolder(tmp_path / name, Config(), resume=True)
    assert not (tmp_path / "mistyped").exists()
    with RunFolder(tmp_path / "new", Config(), resume="auto"):
        assert (tmp_path / "new/config.yaml").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot write into this folder"):
        RunFolder(tmp_path / "file/run", Config())


def test_resume_drops_what_came_after_and_a_torn_row(tmp_path):
    make_run(tmp_path)
    with (tmp_path / "curves.csv").open("a") as file:
        file.write("15,0.75,val/to")
    with RunFolder(tmp_path, Config(), resume=True) as run:
        run.open_curves(20)
        run.record(25, 1.25, {"loss/class": 7.0})
    points = read_curves(tmp_path / "curves.csv")
    assert [point.step for point in points] == [10, 10, 20, 20, 25]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/class")] == [10, 20, 25]


def test_resume_deletes_what_a_killed_run_left_half_written(tmp_path):
    make_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    before = sorted(tmp_path.rglob("*"))
    # Entered and never left, as where the process dies.
    writes = [atomic_write(tmp_path / name) for name in ("best.safetensors", "checkpoints/step_1")]
    for write in writes:
        write.__enter__()
    assert len(sorted(tmp_path.rglob("*"))) == len(before) + 2
    RunFolder(tmp_path, Config(), resume=True)
    assert sorted(tmp_path.rglob("*")) == before


@dataclass(frozen=True)
class Group:
    width: float = 0.25
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Trained:
    lr: float = 0.001
    group: Group = field(default_factory=Group)
    workers: int = 1


def begun(folder, text):
    """A run that has a checkpoint and this configuration."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step_0000000001.pt").touch()
    (folder / "config.yaml").write_text(text)


def resume(folder, config):
    return RunFolder(folder, config, resume=True, may_change={"workers"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 2e-3", r"lr was 0\.002 and is 0\.001 now: leave them"),
        ("group: {width: 1}", r"group\.width was 1\.0 and is 0\.25 now: leave"),
        ("group: {names: [b]}", r"group\.names was \['b'\] and is \['a'\] now: leave"),
        ("{lr: 1, group: {width: 1}}", r"group\.width was 1\.0 .*; lr was 1\.0 and is 0\.001 now"),
        ("rate: 1", r"config\.yaml: unknown key rate"),
    ],
)
def test_another_run_is_refused_by_name(tmp_path, text, message):
    begun(tmp_path, text)
    with pytest.raises(UserError, match=message):
        resume(tmp_path, Trained())
    assert (tmp_path / "config.yaml").read_text() == text


@pytest.mark.parametrize(
    "text", ["lr: 1e-3", "{lr: 0.001, group: {width: 0.25, names: [a]}}", "workers: 7"]
)
def test_the_same_run_may_be_written_in_another_way(tmp_path, text):
    begun(tmp_path, text)
    with resume(tmp_path, Trained()) as run:
        run.open_curves(1)
    assert load_config(Trained, tmp_path / "config.yaml") == Trained()


def test_before_its_first_checkpoint_a_run_may_begin_in_another_way(tmp_path):
    make_run(tmp_path)
    with RunFolder(tmp_path, Config(lr=0.2, resume=True), resume=True) as run:
        run.open_curves(0)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["lr"] == 0.2


def test_an_exception_ends_in_the_log_and_frees_the_handler(tmp_path):
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, Config()):
        raise ZeroDivisionError("the reason")
    log = (tmp_path / "log.txt").read_text()
    assert "run stopped: the reason" in log
    assert "Traceback" in log
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.yaml", b"lr: [0.1"),
        ("config.yaml", b"\xff\x00"),
        (
            "curves.csv",
            b"step,epoch,name,value\n10,0.5,loss/class,0.1\n20,\x00\x00\x00,loss/class,1\n",
        ),
        ("curves.csv", b"step,epoch,name,value\n10,half,loss/class,0.1\n20,1,loss/class,1\n"),
        ("curves.csv", b"10,0.5,loss/class,0.1\n20,1,loss/class,1\n"),
        ("curves.csv", b"\xff\xfe"),
        ("tensorboard", b"a file"),
    ],
)
def test_what_is_damaged_is_set_aside_with_a_warning(tmp_path, name, damage, caplog):
    make_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_0000000030.pt").touch()
    if (tmp_path / name).is_dir():
        shutil.rmtree(tmp_path / name)
    (tmp_path / name).write_bytes(damage)
    for number in ("", "_2"):  # twice: neither is lost
        caplog.clear()
        with RunFolder(tmp_path, Config(), resume=True, may_change={"resume"}) as run:
            run.open_curves(30)
            run.record(40, 2.0, {"loss/class": 7.0})
        kept = tmp_path / f"{name}.damaged{number}"
        assert kept.read_bytes() == damage
        assert f"damaged, set aside as {kept}: {tmp_path / name}" in caplog.text
        (tmp_path / name).rename(tmp_path / f"whole{number}")
        (tmp_path / name).write_bytes(damage)
    assert not (tmp_path / f"{name}.damaged_3").exists()


def test_a_checkpoint_says_of_which_run_it_is(tmp_path):
    """Also where the file was cut between two lines and its other keys seem to be the defaults."""
    run = RunFolder(tmp_path, Config(lr=0.5), may_change={"resume"})
    assert run.config == {"lr": 0.5, "resume": False}
    run.refuse_another({"lr": 0.5, "resume": True})
    run.refuse_another(None)  # of an earlier version
    with pytest.raises(UserError, match=r"cannot resume .*: lr was 0\.1 and is 0\.5 now"):
        run.refuse_another({"resume": False})
    with pytest.raises(UserError, match="its last checkpoint: unknown key width"):
        run.refuse_another({"width": 3})


@pytest.mark.parametrize("resume", [False, True])
def test_the_configuration_that_is_kept_may_begin_another_run(tmp_path, resume):
    with RunFolder(tmp_path, Config(resume=resume)):
        assert load_config(Config, tmp_path / "config.yaml") == Config()


def test_a_folder_that_vanishes_ends_the_run_in_a_line(tmp_path):
    def vanishing():
        with RunFolder(tmp_path / "run", Config()) as run:
            run.open_curves(0)
            run.record(1, 0.1, {"loss/class": 1.0})
            while (tmp_path / "run").exists():  # TensorBoard's thread may be writing
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
            run.record(2, 0.1, {"loss/class": 1.0})

    with pytest.raises(UserError, match=r"curves\.csv: cannot be written: deleted while the run"):
        vanishing()
    assert not (tmp_path / "run").exists()


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(UserError, match=r"log\.txt: cannot be written: Too many levels of symbolic"),
        RunFolder(tmp_path / "run", Config()),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_log_that_cannot_be_written_is_told_once(tmp_path, capsys):
    with RunFolder(tmp_path, Config()) as run, full_disk(10):
        for _ in range(3):
            logging.getLogger("backbones.anything").info("x" * 4000)
        with pytest.raises(UserError, match=r"config\.yaml: cannot be written: File too large"):
            run.open_curves(0)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{tmp_path / 'log.txt'}: cannot be written: [Errno 27] File too large"]
