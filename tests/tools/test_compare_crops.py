"""tools/compare_crops.py: crop networks side by side on the same proposals."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers.tool_runs import error_of, run
from PIL import Image

from backbones.common.config import from_dict
from backbones.networks.weights import load_weights
from detect.benchmarks import crop_networks
from detect.benchmarks.crop_networks import (
    ComparisonConfig,
    comparison_table,
    multiply_adds,
    propose_splits,
)
from detect.checkpoint import load_detector
from detect.commands import propose
from detect.data import load_coco, make_digits
from detect.deployment.detector import deploy_detector
from detect.evaluation import evaluate_coco
from detect.proposals import load_proposals
from tools import compare_crops as tool

VARIANTS = ["inception_v3_79", "inception_v3_79_naive", "inception_v3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=2, val=2, image_size=128)


def settings(digits: Path) -> dict:
    splits = {"format": "coco", "train": "train", "val": None, "test": "val"}
    return {
        "data": splits | {"root": str(digits)},
        "model": {
            "variant": "inception_v3_79_naive",
            "learned": {"tile_size": 64, "channels": 16},
            "proposals_per_image": 3,
            "proposals_per_image_train": 5,
            "rcnn": {"crops_per_image": 2, "positive_fraction": 0.5, "score_thresh": 0.0},
        },
        "optim": {"optimizer": "sgd", "lr": 0.01},
        "epochs": 1,
        "batch_size": 2,
        "workers": 0,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def compared(digits, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished comparison and what the tool printed."""
    folder = tmp_path_factory.mktemp("comparison")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings(digits) | {"variants": VARIANTS}))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        arguments = ["--config", str(path), "--run", str(folder / "run")]
        assert run(tool, *arguments, monkeypatch=patch) == 0
    return folder / "run", printed.getvalue()


def test_all_networks_are_scored_on_the_same_proposals(compared, digits):
    folder, printed = compared
    rows = json.loads((folder / "comparison.json").read_text())
    assert [row["variant"] for row in rows] == VARIANTS
    assert [row["crop_size"] for row in rows] == [79, 79, 299]
    test = load_coco(digits / "annotations" / "val.json", digits / "val")
    for row in rows:
        results = json.loads((folder / row["variant"] / "test_results.json").read_text())
        assert {key: row[key] for key in ("AP", "AP50", "APs", "APm", "APl")} == {
            key: value
            for key, value in evaluate_coco(test, results).items()
            if key in ("AP", "AP50", "APs", "APm", "APl")
        }
        assert row["crops_per_image"] == 3
        assert row["seconds_per_image"] > 0
        assert sum(size["objects"] for size in row["sizes"]) == len(
            torch.cat([sample.labels for sample in test])
        )
        _, metadata = load_weights(folder / row["variant"] / "last.safetensors")
        assert metadata["variant"] == row["variant"]
        assert metadata["config"]["precomputed"] == str(folder / "proposals.json")
    table = (folder / "comparison.md").read_text()
    assert table in printed
    assert all(f"| `{variant}` |" in table for variant in VARIANTS)
    with Image.open(folder / "comparison.png") as picture:
        assert picture.size == (770, 462)


def test_the_proposals_are_the_learned_ones(compared, digits):
    folder, _ = compared
    proposals = load_proposals(folder / "proposals.json")
    detector = load_detector(folder / "proposer" / "last.safetensors", "cpu")
    counts = {"train": 5, "val": 3}
    for split, count in counts.items():
        dataset = load_coco(digits / "annotations" / f"{split}.json", digits / split)
        for index, image_id in enumerate(dataset.image_ids):
            found = proposals[image_id]
            assert len(found.boxes) == count
            # The learned ones begin with the same, however many there are.
            want = detector.propose([dataset.load_image(index)])[0].boxes[:count]
            torch.testing.assert_close(found.boxes[: len(want)], want)


def test_a_comparison_resumes_and_takes_the_proposals_of_a_checkpoint(
    compared, digits, tmp_path, monkeypatch, capsys
):
    folder, _ = compared
    path = tmp_path / "tiny.yaml"
    one = {"variants": ["inception_v3_79_naive"]}
    path.write_text(yaml.safe_dump(settings(digits) | one))
    weights = str(folder / "proposer" / "last.safetensors")
    arguments = ["--config", str(path), "--run", str(tmp_path / "run"), "--proposals_from", weights]
    assert run(tool, *arguments, monkeypatch=monkeypatch) == 0
    proposals = (folder / "proposals.json").read_bytes()
    assert (tmp_path / "run" / "proposals.json").read_bytes() == proposals
    assert not (tmp_path / "run" / "proposer").exists()
    naive = "inception_v3_79_naive"
    state, _ = load_weights(tmp_path / "run" / naive / "last.safetensors")
    again, _ = load_weights(folder / naive / "last.safetensors")
    assert all(torch.equal(state[name], again[name]) for name in again)
    before = (tmp_path / "run" / naive / "last.safetensors").read_bytes()
    kept = ["--run", str(tmp_path / "run"), "--resume", "true"]  # with its own configuration
    assert run(tool, *kept, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "run" / naive / "last.safetensors").read_bytes() == before
    message = error_of(tool, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "already holds a comparison: continue it with --resume or" in message
    assert (tmp_path / "run" / "proposals.json").read_bytes() == proposals


def test_splits_have_the_labels_of_the_training_split(digits, tmp_path, monkeypatch):
    """Or what is found of a class that `test` lacks would be refused after hours."""
    shutil.copytree(digits, tmp_path / "digits")
    path = tmp_path / "digits" / "annotations" / "val.json"
    document = json.loads(path.read_text())
    document["categories"] = [
        {"id": 50 + k["id"], "name": k["name"]} for k in document["categories"]
    ]
    for entry in document["annotations"]:
        entry["category_id"] += 50
    lacking = {k["id"] for k in document["categories"]} - {
        entry["category_id"] for entry in document["annotations"]
    }
    assert lacking
    document["categories"] = [k for k in document["categories"] if k["id"] not in lacking]
    path.write_text(json.dumps(document))
    monkeypatch.setattr(crop_networks, "_compare", lambda *given: given[-1])
    given = settings(tmp_path / "digits") | {"variants": VARIANTS, "run": str(tmp_path / "run")}
    datasets = crop_networks.compare_crops(from_dict(ComparisonConfig, given))
    assert datasets["val"].class_names == datasets["train"].class_names
    ids = dict(zip(datasets["val"].class_names, datasets["val"].category_ids, strict=True))
    assert {entry["category_id"] for entry in document["annotations"]} <= {*ids.values()}


def test_an_image_without_proposals_has_itself_as_one(compared, tmp_path):
    folder = make_digits(tmp_path / "digits", train=2, val=2, image_size=128)
    val = load_coco(folder / "annotations" / "val.json", folder / "val")
    Path(val.sample(0).path).write_bytes(b"broken")
    config = from_dict(ComparisonConfig, settings(folder))
    # No score is that high, so that the readable image has none either.
    config = replace(config, model=replace(config.model, proposal_score_thresh=1.0))
    detector = load_detector(compared[0] / "proposer" / "last.safetensors", "cpu")
    datasets = {
        split: load_coco(folder / "annotations" / f"{split}.json", folder / split)
        for split in ("train", "val")
    }
    found = propose_splits(detector, config, datasets)
    for image_id in val.image_ids:
        assert found[image_id].boxes.tolist() == [[0, 0, 128, 128]]
        assert found[image_id].scores.tolist() == [0]
    others = found.keys() - set(val.image_ids)
    assert [len(found[image_id].boxes) for image_id in others] == [5, 5]


def test_multiply_adds_of_the_papers_networks():
    """Without the classifier's 2 M; the numbers with it are in docs/results.md."""
    billions = {name: multiply_adds(name, 1.0) for name in VARIANTS}
    assert billions["inception_v3"][0] == 299
    for name, want in zip(VARIANTS, (5.36, 0.21, 5.71), strict=True):
        assert billions[name][1] / 1e9 == pytest.approx(want, abs=0.006)


def test_the_table_shows_sizes_that_there_are():
    sizes = [
        {"from": 0, "to": 16, "objects": 0, "AP": None},
        {"from": 16, "to": 32, "objects": 5, "AP": 0.25},
        {"from": 32, "to": None, "objects": 7, "AP": 0.5},
    ]
    row = {"variant": "a", "crop_size": 79, "multiply_adds": 1_234_567_890, "sizes": sizes}
    row |= {"seconds_per_image": 0.5, "AP": 0.4, "AP50": 0.8, "AP75": 0.3}
    row |= {"APs": None, "APm": 0.1, "APl": 0.2}
    assert comparison_table([row]).splitlines() == [
        "| crop network | crop | multiply-adds | s/image | AP | AP50 | AP75 | APs | APm | APl |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| `a` | 79 | 1,235 M | 0.500 | 0.400 | 0.800 | 0.300 | - | 0.100 | 0.200 |",
        "",
        "| AP by size in pixels | 16-32 | 32+ |",
        "| --- | ---: | ---: |",
        "| objects | 5 | 7 |",
        "| `a` | 0.250 | 0.500 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "[]"], "variants must be different networks"),
        (["--data.test", "null"], "data.test must name the split to compare on"),
        (["--model.rcnn.crop_size", "79"], "remove model.rcnn.crop_size:"),
        (["--variants", "[inception_v9]"], "unknown backbone 'inception_v9'"),
    ],
)
def test_mistakes_are_one_line(arguments, words, digits, tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(digits)))
    arguments = ["--config", str(config), "--run", str(tmp_path / "run"), *arguments]
    message = error_of(tool, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert words in message


def test_several_processes_are_refused(digits, tmp_path, monkeypatch, capsys):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(settings(digits)))
    message = error_of(tool, "--config", str(config), monkeypatch=monkeypatch, capsys=capsys)
    assert "a comparison runs in one process, 2 were started" in message


def test_proposals_of_a_detector_as_a_file(compared, digits, tmp_path, monkeypatch, capsys):
    """What tools.propose writes is what the detector proposes, and trains another one."""
    output = tmp_path / "proposals.json"
    data = ["--data.format", "coco", "--data.root", str(digits)]
    arguments = ["--weights", str(compared[0] / "proposer"), *data, "--output", str(output)]
    many = ["--model.proposals_per_image", "4", "--splits", "[train, val]"]
    assert run(propose, *arguments, *many, monkeypatch=monkeypatch) == 0
    assert f"16 proposals for 4 images: {output}" in capsys.readouterr().out
    settings_of_use = {"proposals_per_image": 4}
    detector = load_detector(compared[0] / "proposer", "cpu", settings_of_use)
    detector = deploy_detector(detector)
    val = load_coco(digits / "annotations" / "val.json", digits / "val")
    found = load_proposals(output)
    for index, image_id in enumerate(val.image_ids):
        (want,) = detector.propose([val.load_image(index)])
        torch.testing.assert_close(found[image_id].boxes, want.boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found[image_id].scores, want.scores)
    message = error_of(
        *(propose, *arguments, "--splits", "[val, val]"), monkeypatch=monkeypatch, capsys=capsys
    )
    assert "splits must be different ones" in message
    for split in ("train", "val"):  # both count from 1
        path = tmp_path / "twice" / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((digits / "annotations" / "val.json").read_text())
        shutil.copytree(digits / "val", tmp_path / "twice" / split)
    twice = [word.replace(str(digits), str(tmp_path / "twice")) for word in arguments]
    message = error_of(propose, *twice, monkeypatch=monkeypatch, capsys=capsys)
    assert "splits train, val use the same image ids" in message
    message = error_of(
        *(propose, *arguments[:-1], str(tmp_path)), monkeypatch=monkeypatch, capsys=capsys
    )
    assert "this is a folder: name the file to write" in message
    trained = str(compared[0] / VARIANTS[0])  # on precomputed proposals
    message = error_of(
        *(propose, "--weights", trained, *data), monkeypatch=monkeypatch, capsys=capsys
    )
    assert "this detector has no proposer of its own" in message
