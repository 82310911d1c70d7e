import json

import numpy as np
import pytest
import torch
from PIL import Image
from tool_runs import error_of, run

from backbones import create_backbone
from backbones.evaluation import average, predict, top_scores
from backbones.image_sources import open_split
from backbones.weights import load_backbone, save_backbone
from tools import evaluate_backbone

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
    common = ["--data.root", str(folder), "--device", "cpu", "--workers", "0"]
    return ["--weights", *files, *common, "--output", str(folder / "report.json")]


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
