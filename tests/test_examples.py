import runpy
from pathlib import Path

import torch
from helpers.untrained_detector import save_untrained

from backbones.common.images import write_image
from detect import load_detector

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_torchvisions_loop_trains(tmp_path, monkeypatch, capsys):
    path = EXAMPLES / "torchvision_loop.py"
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    runpy.run_path(str(path))["main"](images=4, epochs=4)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    detector = load_detector("runs/loop.safetensors", "cpu")
    assert detector.class_names == [str(digit) for digit in range(10)]


def test_the_tour_of_a_detector(tmp_path, monkeypatch, capsys):
    pictures = tmp_path / "runs/digits/val"
    pictures.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for name in ("a.jpg", "b.jpg"):
        pixels = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=generator)
        write_image(pictures / name, pixels)
    save_untrained(tmp_path / "runs/loop.safetensors", 3)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(EXAMPLES / "detector_in_python.py"))
    found = names["detector"](pictures / "a.jpg", score_thresh=0.1)
    assert 0 < len(found) == len(list(tmp_path.glob("runs/crops/*/*.jpg")))
    assert (tmp_path / "runs/found.jpg").stat().st_size > 0
    assert (names["annotated"] != names["scene"][:, :, ::-1]).any()
    said = capsys.readouterr().out
    assert "Detector(inception_v3_79, crops of 32 pixels, LearnedProposer, scores from" in said
    assert "3 classes: 0, 1, 2)" in said
    assert said.count("b.jpg 90x70: ") == 2  # some at once, and one after the other
