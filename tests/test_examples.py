import ast
import json
import re
import runpy
from pathlib import Path
from unittest.mock import create_autospec

import matplotlib.pyplot as plt
import torch

import detect.data
import detect.deployment.export
from detect import load_detector
from detect.data import make_digits

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


def test_the_cells_of_the_notebook_run_in_order(tmp_path, monkeypatch, capsys):
    """In one process, on less data; not the export, a minute of a core, but its call."""
    cells = json.loads((EXAMPLES / "detector.ipynb").read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    sources = ["".join(cell["source"]) for cell in cells]
    (place,) = (
        i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", ())
    )
    given = set(re.findall(r"^([A-Z_]+) = ", sources[place], re.MULTILINE))
    options = {"epochs": "1", "batch_size": "4", "workers": "0", "device": "cpu"}
    options |= {"model.learned.tile_size": "64"}
    options |= {"model.rcnn.crop_size": "32", "model.proposals_per_image": "10"}
    # All are unsure as yet.
    options |= {"model.rcnn.score_thresh": "0", "model.proposal_score_thresh": "0"}
    data = make_digits(tmp_path / "digits", train=4, val=2, image_size=128)
    own = {
        "DATA": data,
        "PICTURES": sorted((data / "val").glob("*.jpg")),
        "RUN": str(tmp_path / "run"),
        "CONFIG": "small",
        "OPTIONS": [part for key, value in options.items() for part in (f"--{key}", value)],
        "SCORE_THRESH": 0.0,
    }
    assert own.keys() == given
    export_detector = create_autospec(detect.deployment.export.export_detector)
    monkeypatch.setattr(detect.deployment.export, "export_detector", export_detector)
    monkeypatch.setattr(detect.data, "make_digits", create_autospec(make_digits))
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for i, source in enumerate(sources):
        *body, last = ast.parse(source).body
        exec(compile(ast.Module(body, []), f"cell {i}", "exec"), names)
        show = isinstance(last, ast.Expr)
        kind = ast.Expression(last.value) if show else ast.Module([last], [])
        shown = eval(compile(kind, f"cell {i}", "eval" if show else "exec"), names)
        if i == place:
            names |= own
        if hasattr(shown, "_repr_png_"):
            assert shown._repr_png_().startswith(b"\x89PNG")
    plt.close("all")
    # Run again, it takes what there is.
    trained = (tmp_path / "run/best.safetensors").read_bytes()
    (again,) = (source for source in sources if "train_detector(" in source)
    val = names["outcome"]["val"]
    exec(compile(again, "again", "exec"), names)
    assert names["outcome"]["val"] == val
    assert (tmp_path / "run/best.safetensors").read_bytes() == trained
    found = names["result"]
    assert 0 < len(found) == len(names["crops"]) == len(list(tmp_path.glob("runs/crops/*/*.jpg")))
    assert (tmp_path / "runs/found.jpg").stat().st_size > 0
    assert (names["annotated"] != names["scene"]).any()
    assert names["counts"] == sorted(names["counts"], reverse=True)
    assert names["counts"][0] > names["counts"][-1] == 0
    assert f"{found.names[0]} {found.scores[0]:.2f}: " in capsys.readouterr().out
    export_detector.assert_called_once_with("runs/digits.onnx", names["trained"])
