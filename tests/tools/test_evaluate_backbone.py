import json
import shutil

import numpy as np
import pytest
import torch
from helpers.tool_runs import error_of, run
from PIL import Image

from backbones import create_backbone
from backbones.classification.evaluation import average, predict, top_scores
from backbones.data.sources import open_split
from backbones.networks.checkpoint import load_backbone, save_backbone
from backbones.training.checkpoints import save_checkpoint
from backbones.training.recipe import OptimConfig, classification_loss
from backbones.training.step import StepConfig, TrainStep
from detect.commands import evaluate_backbone

NAMES = ["dark", "light", "middle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in three classes with one broken file, and networks of two input sizes."""
    root = tmp_path_factory.mktemp("evaluate")
    random = np.random.default_rng(0)
    for name in NAMES:
        (root / "val" / name).mkdir(parents=True)
        for index in range(2):
            pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{index}.png")
    (root / "val" / "dark" / "broken.png").write_bytes(b"broken")
    for number, variant in enumerate(("inception_v3_79_naive", "inception_v3_79")):
        torch.manual_seed(number)
        model = create_backbone(variant, num_classes=3, width=0.25)
        torch.nn.init.normal_(model.fc.weight, std=0.5)
        save_backbone(root / f"{number}.safetensors", model, NAMES)
        save_backbone(root / "other.safetensors", model, ["dark", "light", "red"])
        save_backbone(root / "nameless.safetensors", model)
    return root


def arguments(folder, *weights):
    files = [str(folder / f"{name}.safetensors") for name in weights]
    return ["--weights", *files, *common(folder, folder / "report.json")]


def common(data, output):
    own = ["--data.root", str(data), "--output", str(output)]
    return [*own, "--device", "cpu", "--workers", "0"]


@pytest.mark.parametrize("crops", [1, 12])
def test_scores_an_ensemble(folder, crops, monkeypatch, capsys):
    options = [*arguments(folder, "0", "1"), "--crops", str(crops)]
    assert run(evaluate_backbone, *options, monkeypatch=monkeypatch) == 0
    report = json.loads((folder / "report.json").read_text())
    source = open_split(folder, "val")
    paths = [folder / "0.safetensors", folder / "1.safetensors"]
    results = [predict(load_backbone(path), source, crops) for path in paths]
    expected = [top_scores(result) for result in (*results, average(results))]
    assert list(report["scores"].values()) == expected
    assert (report["images"], len(report["unreadable"]), report["crops"]) == (6, 1, crops)
    assert sorted(each["name"] for each in report["classes"]) == NAMES
    assert [each["top1"] for each in report["classes"]] == sorted(
        each["top1"] for each in report["classes"]
    )
    output = capsys.readouterr().out
    assert f"{100 * expected[2]['top1']:5.2f} %" in output
    assert "ensemble of 2" in output
    assert "taken for" in output


@pytest.fixture
def training_run(tmp_path):
    """Makes the folder of a run whose averaged weights say dark and whose raw ones say middle."""

    def make(ema_decay=0.9):
        train_step = TrainStep(
            create_backbone("inception_v3_79_naive", num_classes=3, width=0.25),
            *(classification_loss, OptimConfig(ema_decay=ema_decay), StepConfig(), "fp32", 0),
        )
        train_step.model.fc.bias.data[2] = 100
        for_use = train_step.model
        if train_step.ema is not None:
            for_use = train_step.ema.module
            for_use.fc.bias.data[0] = 100
        save_backbone(tmp_path / "run/last.safetensors", for_use, NAMES)
        state = {**train_step.state_dict(), "state": {"step": 7}}
        save_checkpoint(tmp_path / "run/checkpoints", 7, state)
        return tmp_path / "run"

    return make


@pytest.fixture
def three_two_one(tmp_path):
    """Three dark, two light images, and one middle."""
    for name, count in zip(NAMES, (3, 2, 1), strict=True):
        (tmp_path / "val" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 50)).save(tmp_path / "val" / name / f"{index}.png")
    return tmp_path


def test_a_run_is_scored_with_averaged_and_raw_weights(
    folder, three_two_one, training_run, monkeypatch, capsys
):
    run_folder, output = training_run(), three_two_one / "report.json"
    shared = common(three_two_one, output)
    weights = ["--weights", f"{run_folder}/"]
    assert run(evaluate_backbone, *shared, *weights, monkeypatch=monkeypatch) == 0
    report = json.loads(output.read_text())
    averaged, raw = {"top1": 3 / 6, "top5": 1.0}, {"top1": 1 / 6, "top5": 1.0}
    assert report["scores"] == {f"{run_folder} (averaged)": averaged, f"{run_folder} (raw)": raw}
    # The classes are those of the averaged weights.
    top1 = {each["name"]: each["top1"] for each in report["classes"]}
    assert top1 == {"dark": 1.0, "light": 0.0, "middle": 0.0}
    lines = capsys.readouterr().out.splitlines()
    assert f"{run_folder} (averaged)      1 50.00 % 100.00 %        6           0" in lines
    assert f"{run_folder} (raw)           1 16.67 % 100.00 %        6           0" in lines

    # Raw weights are no member of an ensemble.
    file = str(folder / "0.safetensors")
    weights = ["--weights", str(run_folder), file]
    assert run(evaluate_backbone, *shared, *weights, monkeypatch=monkeypatch) == 0
    scores = json.loads(output.read_text())["scores"]
    assert list(scores)[2:] == [file, "ensemble of 2"]
    assert scores["ensemble of 2"] == averaged


def test_a_run_without_averaging_has_raw_weights_alone(
    folder, three_two_one, training_run, monkeypatch
):
    run_folder = training_run(ema_decay=None)
    options = [*common(three_two_one, folder / "report.json"), "--weights", str(run_folder)]
    assert run(evaluate_backbone, *options, monkeypatch=monkeypatch) == 0
    scores = json.loads((folder / "report.json").read_text())["scores"]
    assert scores == {f"{run_folder} (raw)": {"top1": 1 / 6, "top5": 1.0}}


def test_a_folder_that_is_no_run_is_refused(folder, training_run, monkeypatch, capsys):
    def refused():
        options = [*arguments(folder)[1:], "--weights", str(run_folder)]
        return error_of(evaluate_backbone, *options, monkeypatch=monkeypatch, capsys=capsys)

    run_folder = training_run()
    wide = create_backbone("inception_v3_79_naive", num_classes=3, width=0.5)
    save_backbone(run_folder / "last.safetensors", wide, NAMES)
    assert "its checkpoint does not fit its last.safetensors" in refused()
    shutil.rmtree(run_folder / "checkpoints")
    assert "has no checkpoint: expected the folder of a training run" in refused()
    (run_folder / "last.safetensors").unlink()
    assert "last.safetensors: no such file" in refused()


def test_what_does_not_fit_is_refused(folder, monkeypatch, capsys):
    def refused(*options):
        return error_of(evaluate_backbone, *options, monkeypatch=monkeypatch, capsys=capsys)

    message = refused(*arguments(folder, "0", "other"))
    assert "other.safetensors: not the classes of" in message
    assert "number 2 is 'red', expected 'middle'" in message
    assert "not the classes of the weights: number 2 is 'middle', expected 'red'" in refused(
        *arguments(folder, "other")
    )
    assert "2 of them, expected 3" in refused(*arguments(folder, "0"), "--data.max_classes", "2")
    assert "nameless.safetensors: has no class names" in refused(*arguments(folder, "nameless"))
    assert "crops" in refused(*arguments(folder, "0"), "--crops", "5")
    assert "batch_size must be at least 1" in refused(*arguments(folder, "0"), "--batch_size", "0")
    assert "weights" in refused("--weights", "[]")


def test_no_report_and_no_file_of_others_is_replaced(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    unnamed = arguments(folder, "0")
    place = unnamed.index("--output")
    unnamed[place : place + 2] = []
    for report in ("runs/evaluate_backbone/report.json", "runs/evaluate_backbone2/report.json"):
        assert run(evaluate_backbone, *unnamed, monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out.endswith(f"report: {report}\n")
        assert (tmp_path / report).exists()
    for number, content in enumerate(('{"images": []}', "mine")):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        given = [*unnamed, "--output", str(path)]
        message = error_of(evaluate_backbone, *given, monkeypatch=monkeypatch, capsys=capsys)
        assert "is no report that was written here" in message
        assert path.read_text() == content
