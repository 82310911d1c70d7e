import json

import pytest
import torch
from helpers.tool_runs import error_of, run

from backbones.benchmarks.peers import inference_forms
from tools import benchmark

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("backbones.benchmarks.timing.MIN_SECONDS", 0.0)
    monkeypatch.setattr("backbones.benchmarks.tables.PEAK_SIZES", (64,))
    monkeypatch.setattr("backbones.benchmarks.tables.INPUT_IMAGES", 3)


def test_all_parts_side_by_side(tmp_path, monkeypatch, capsys):
    arguments = ["--networks", '["inception_v3_79_naive"]', "--batch_size", "2", "--repeats", "1"]
    arguments += ["--width", "0.25", "--parts", '["training", "input"]', "--output", str(tmp_path)]
    assert run(benchmark, *arguments, monkeypatch=monkeypatch) == 0
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert content["machine"]["threads"] == torch.get_num_threads()
    rows = content["rows"]
    assert {row["part"] for row in rows} == {"training", "input"}
    for part, first, ours in (
        ("training", "ours", "ours, channels_last"),
        ("input", "torchvision", "ours"),
    ):
        table = {row["name"]: row for row in rows if row["part"] == part}
        assert table[first]["ratio"] == 1
        ratio = table[ours]["value"] / table[first]["value"]
        assert table[ours]["ratio"] == pytest.approx(ratio)
    printed = capsys.readouterr().out
    assert "| training, inception_v3_79_naive, batch 2 | | images/s | ratio |" in printed


def test_memory_of_each_form(tmp_path, monkeypatch):
    first = inference_forms("inception_v3_79_naive", 0.25, 1, CPU, compiled=False)[:1]
    monkeypatch.setattr("backbones.benchmarks.tables.inference_forms", lambda *a, **k: first)
    arguments = ["--networks", '["inception_v3_79_naive"]', "--width", "0.25"]
    arguments += ["--parts", '["memory"]', "--output", str(tmp_path)]
    assert run(benchmark, *arguments, monkeypatch=monkeypatch) == 0
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert 100 < row["value"] < 3000  # PyTorch itself takes some hundred megabytes


def test_narrow_networks_run_in_every_form_without_peers(tmp_path, monkeypatch):
    arguments = ["--networks", '["inception_v3_79_naive"]', "--batch_size", "2", "--repeats", "1"]
    arguments += ["--width", "0.25", "--parts", '["inference"]', "--output", str(tmp_path)]
    assert run(benchmark, *arguments, monkeypatch=monkeypatch) == 0
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    names = {(row["name"], row["precision"]) for row in rows}
    assert names >= {("ours deployed", "fp32"), ("ours deployed", "bf16")}
    assert all(name.startswith("ours") for name, _ in names)
    assert all((row["peak_share"] is not None) == (row["precision"] == "bf16") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--batch_size", "0"], "batch_size must be at least 1 or null, got 0"),
        (["--networks", '["inception_v9"]'], "unknown backbone 'inception_v9'"),
        (["--networks", "[]"], "parts and networks must not be empty"),
        (["--parts", '["speed"]'], "parts"),
        (["--parts", '["memory"]', "--compile", "true"], "compile is for the part inference"),
        (["--parts", '["memory"]', "--images", "x"], "images are for the part input"),
        (["--parts", '["input"]', "--images", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_nothing_to_measure(arguments, words, monkeypatch, capsys):
    assert words in error_of(benchmark, *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_without_a_compiler_nothing_begins(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    message = error_of(benchmark, "--compile", "true", monkeypatch=monkeypatch, capsys=capsys)
    assert "compile on a CPU needs a C++ compiler: install g++, or leave it out" in message
