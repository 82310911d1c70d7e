import json

import pytest
from tool_runs import error_of, run

from tools import benchmark_input


def test_measures_every_pipeline_on_the_same_images(tmp_path, monkeypatch, capsys):
    output = tmp_path / "figures.json"
    arguments = ["--count", "3", "--repeats", "1", "--sizes", "[32]", "--output", str(output)]
    assert run(benchmark_input, *arguments, monkeypatch=monkeypatch) == 0
    figures = json.loads(output.read_text())["32"]
    assert list(figures) == ["ours", "torchvision", "timm", "timm with prefetcher"]
    assert min(figures.values()) > 0
    ratio = figures["ours"] / figures["torchvision"]
    assert f"ours is {ratio:.2f} times" in capsys.readouterr().out


def test_pipelines_give_crops_of_the_same_size(tmp_path):
    benchmark_input.make_jpegs(tmp_path / "made", 2)
    examples = {name: f(1) for name, f in benchmark_input.pipelines(tmp_path, 32).items()}
    assert {tuple(example[0].shape) for example in examples.values()} == {(3, 32, 32)}


@pytest.mark.parametrize("option", ["--count", "--repeats"])
def test_nothing_to_measure(option, monkeypatch, capsys):
    message = error_of(benchmark_input, option, "0", monkeypatch=monkeypatch, capsys=capsys)
    assert "count and repeats must be at least 1" in message
