"""tools/evaluate.py: reports on results and on detectors, and mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.full_disk import full_disk
from helpers.tool_runs import error_of, run
from helpers.untrained_detector import save_untrained

from backbones.common.errors import UserError
from backbones.common.images import write_image
from detect.build import build_detector
from detect.checkpoint import save_detector
from detect.commands import evaluate, inspect_data, propose
from detect.config import ModelConfig
from detect.data import load_coco, make_digits
from detect.data.open import DatasetConfig
from detect.evaluation import evaluate_coco, load_results, to_coco_results
from detect.evaluation.report import IOU_THRESHOLDS, _draw_proposal_recall, write_report
from detect.evaluation.report_folder import report_folder
from detect.inference.evaluate import EvaluateConfig, with_split
from detect.proposals import LearnedConfig, Proposals, save_proposals


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=2, val=3, image_size=128)


@pytest.fixture(scope="module")
def results(digits, tmp_path_factory) -> Path:
    """The truth but for one box, moved away from its digit."""
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    found = [
        {"boxes": s.boxes, "labels": s.labels, "scores": torch.linspace(0.9, 0.6, len(s.boxes))}
        for s in dataset
    ]
    entries = to_coco_results(dataset, found)
    x, y, w, h = entries[0]["bbox"]
    entries[0]["bbox"] = [(x + 64) % (128 - w), y, w, h]
    path = tmp_path_factory.mktemp("results") / "results.json"
    path.write_text(json.dumps(entries))
    return path


def data_arguments(root: Path) -> list[str]:
    return ["--data.format", "coco", "--data.root", str(root), "--split", "val"]


def test_images_without_results_are_counted(digits, results, tmp_path, monkeypatch, caplog):
    entries = json.loads(results.read_text())
    first = entries[0]["image_id"]
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps([entry for entry in entries if entry["image_id"] != first]))
    for file, warnings in ((results, []), (fewer, ["no results for 1 of 3 images"])):
        arguments = ["--results", str(file), *data_arguments(digits), "--output", str(tmp_path)]
        assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
        assert len(caplog.messages) == len(warnings)
        assert all(text in caplog.text for text in warnings)


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_results_with_other_ids_are_refused(kind, digits, results, tmp_path, monkeypatch, capsys):
    """As `tools.infer` numbers images, not the dataset, and as classes change their places."""
    shutil.copy(results, tmp_path / "results.json")
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    arguments = ["--results", str(tmp_path / "results.json"), *data_arguments(digits)]
    arguments += ["--output", str(tmp_path / "out")]
    document = dataset.to_coco_images()
    for number, entry in enumerate(document["images"]):
        entry["file_name"] = f"elsewhere/{Path(dataset.paths[number]).name}"
    (tmp_path / "images.json").write_text(json.dumps(document))
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    ids = [entry["id"] for entry in document[kind]]
    for entry, other in zip(document[kind], reversed(ids), strict=True):
        entry["id"] = other
    (tmp_path / "images.json").write_text(json.dumps(document))
    message = error_of(evaluate, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "images.json: " in message
    assert "the results are of other ones (tools.infer numbers its images by itself" in message
    (tmp_path / "images.json").write_text("[1]")
    message = error_of(evaluate, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "images.json: expected images and categories" in message


def test_images_are_told_by_the_file_that_a_result_names(digits, results, tmp_path, caplog):
    """Ultralytics numbers images by the digits of their names, or not at all."""
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    names = {
        key: Path(path).name for key, path in zip(dataset.image_ids, dataset.paths, strict=True)
    }
    entries = json.loads(results.read_text())
    expected = evaluate_coco(dataset, load_results(results, dataset))
    path = tmp_path / "predictions.json"
    for others in ("x", 1):
        changed = [
            entry | {"image_id": others, "file_name": names[entry["image_id"]]} for entry in entries
        ]
        path.write_text(json.dumps(changed))
        assert evaluate_coco(dataset, load_results(path, dataset)) == expected
    assert not caplog.messages
    other = entries[0] | {"file_name": "of_another.png"}
    path.write_text(json.dumps([*entries, other]))
    load_results(path, dataset)
    assert "with a file_name that is not in the dataset, taken by image_id: 1, first" in caplog.text
    path.write_text(json.dumps([other]))
    with pytest.raises(UserError, match="no file_name of its entries is in the dataset"):
        load_results(path, dataset)
    path.write_text(json.dumps([entries[0] | {"file_name": "of_another.png", "image_id": "x"}]))
    with pytest.raises(UserError, match="entry 0 must have a whole number as image_id"):
        load_results(path, dataset)


def test_categories_that_count_from_elsewhere_are_asked_about(digits, results, tmp_path, caplog):
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    ids = dataset.category_ids
    shifted = [
        entry | {"category_id": ids[(ids.index(entry["category_id"]) + 1) % len(ids)]}
        for entry in json.loads(results.read_text())
    ]
    load_results(results, dataset)
    assert not caplog.messages
    (tmp_path / "shifted.json").write_text(json.dumps(shifted))
    load_results(tmp_path / "shifted.json", dataset)
    assert len(caplog.messages) == 1
    assert "objects that are found 0 have their class: are the category ids" in caplog.text


def made(root: Path, objects: int, names: tuple[str, ...] = ("cell", "dog")) -> list[str]:
    """A split of one image with so many objects of the first class, all found; the arguments."""
    boxes = [[10 + 20 * (n % 20), 10 + 20 * (n // 20), 12, 12] for n in range(objects)]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 420, "height": 320}],
        "annotations": [row | {"id": number} for number, row in enumerate(rows, start=1)],
        "categories": [{"id": key, "name": name} for key, name in enumerate(names, start=1)],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "val.json").write_text(json.dumps(document))
    write_image(root / "val" / "a.png", torch.zeros(3, 320, 420, dtype=torch.uint8))
    (root / "perfect.json").write_text(json.dumps([row | {"score": 0.9} for row in rows]))
    arguments = ["--results", str(root / "perfect.json"), *data_arguments(root)]
    return [*arguments, "--output", str(root / "out")]


def test_more_objects_than_coco_counts_are_said(tmp_path, monkeypatch, capsys, caplog):
    assert run(evaluate, *made(tmp_path, 300), monkeypatch=monkeypatch) == 0
    assert "at 100 detections: AP 0.337, " in capsys.readouterr().out
    assert "with all detections AP 1.000" in caplog.text
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["errors"]["counts"]["missed"] == 0
    assert content["confusion"]["counts"][1][1] == 300
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "COCO's at 100 detections of a class in an image, and 1 of the images" in page
    assert "<th>AP at 100 detections<th>AP<th>AP50 at 100 detections<th>precision" in page
    assert "<tr><td>cell<td>300<td>0.337<td>1.000" in page


def test_a_split_without_objects_has_no_scores(tmp_path, monkeypatch, capsys, caplog):
    assert run(evaluate, *made(tmp_path, 0), monkeypatch=monkeypatch) == 0
    assert "AP -, AP50 -, AP75 -, APs -, APm -, APl -\n" in capsys.readouterr().out
    assert "split val has no objects: average precision is not defined" in caplog.text


def test_nothing_found_is_said_in_words(tmp_path, monkeypatch):
    arguments = made(tmp_path, 3)
    (tmp_path / "perfect.json").write_text("[]")
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "every object is missed (3), and there is no other error" in page
    assert "<th>AP50 lost" not in page
    assert "there is no best threshold" in page


@pytest.mark.filterwarnings("error")
def test_a_report_on_no_proposals(tmp_path):
    made(tmp_path, 3)
    dataset = load_coco(tmp_path / "annotations" / "val.json", tmp_path / "val")
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    found = [empty | {"scores": torch.zeros(0)}]
    regions = [torch.zeros(0, 4)]
    report = write_report(dataset, found, tmp_path, title="blind", regions=regions)
    assert report["proposals"] == [{"count": 0, "recall_50": 0.0, "recall_70": 0.0}]
    assert "Nothing was proposed in any image." in (tmp_path / "report.html").read_text()


def test_names_of_classes_are_no_formulas(tmp_path, monkeypatch):
    names = ("$5_$10", "<b>$x$</b> & \\$", "_c")
    assert run(evaluate, *made(tmp_path, 3, names), monkeypatch=monkeypatch) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<td>$5_$10<td>3" in page
    # matplotlib notes what it draws.
    assert "$5_$10 -->" in page


@pytest.fixture
def report(digits, results, tmp_path, monkeypatch) -> Path:
    arguments = ["--results", str(results), *data_arguments(digits), "--output", str(tmp_path)]
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    return tmp_path


def test_a_report_on_results(report, digits, results):
    content = json.loads((report / "report.json").read_text())
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    assert content["coco"] == evaluate_coco(dataset, json.loads(results.read_text()))
    assert sum(content["objects"].values()) == sum(row["objects"] for row in content["sizes"])
    assert content["errors"]["counts"]["missed"] + content["errors"]["counts"]["localisation"] == 1
    # All hits are on the diagonal; the moved box stands in row 0, its digit in column 0.
    assert content["confusion"]["names"] == ["background", *map(str, range(10))]
    confusion = torch.tensor(content["confusion"]["counts"])
    assert confusion[0].sum() == confusion[:, 0].sum() == 1
    assert confusion.diagonal().sum() == sum(content["objects"].values()) - 1
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "//" not in page.replace("http://www.w3.org", "").split("data:image")[0]
    # Nothing is known of what another detector's results cost.
    assert content["cost"] is None
    assert "crops an image" not in page


def test_a_report_on_a_detector(digits, tmp_path, monkeypatch, capsys):
    config = ModelConfig(
        variant="inception_v3_79_naive",
        learned=LearnedConfig(tile_size=64, channels=16),
        proposals_per_image=5,
    )
    torch.manual_seed(0)
    names = [str(digit) for digit in range(10)]
    weights = tmp_path / "d.safetensors"
    save_detector(weights, build_detector(config, 10), config, names, range(1, 11), {})
    arguments = ["--weights", str(weights), *data_arguments(digits), "--output", str(tmp_path)]
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    dataset = load_coco(digits / "annotations" / "val.json", digits / "val")
    written = json.loads((tmp_path / "results.json").read_text())
    images = json.loads((tmp_path / "images.json").read_text())["images"]
    assert written
    assert {result["image_id"] for result in written} <= {image["id"] for image in images}
    assert all(Path(image["file_name"]).is_file() for image in images)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["coco"] == evaluate_coco(dataset, written)
    assert content["cost"]["crops_per_image"] == 5
    shown = f"{content['cost']['seconds_per_image']:.3f} s"
    assert f"5.0 crops and {shown} an image" in capsys.readouterr().out
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert f"looked at 5.0 crops an image and took {shown}," in page


def test_precomputed_proposals_must_be_named_and_only_then(digits, tmp_path, monkeypatch, capsys):
    names = [str(digit) for digit in range(10)]
    for proposer, options, words in (
        ("precomputed", {"precomputed": "p.json"}, "name its proposals by --precomputed"),
        ("grid", {}, "has a proposer of its own: remove --precomputed"),
    ):
        config = ModelConfig(variant="inception_v3_79_naive", proposer=proposer, **options)
        weights = tmp_path / f"{proposer}.safetensors"
        save_detector(weights, build_detector(config, 10), config, names, range(1, 11), {})
        arguments = ["--weights", str(weights), *data_arguments(digits), "--output", str(tmp_path)]
        if proposer == "grid":
            arguments += ["--precomputed", "p.json"]
        assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 2
        assert words in capsys.readouterr().err


def test_reports_that_name_no_folder_are_all_kept(digits, results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--results", str(results), *data_arguments(digits)]
    for folder in ("runs/evaluate", "runs/evaluate2", "runs/evaluate3"):
        assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out.endswith(f"report: {folder}/report.html\n")
        assert (tmp_path / folder / "report.html").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 3
    with pytest.raises(UserError, match="no engine"), report_folder(None, has_results=True):
        raise UserError("no engine")
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_the_datas_own_folder_is_no_output(digits, results, tmp_path, monkeypatch, capsys):
    weights = save_untrained(tmp_path / "x.safetensors", 10)
    before = sorted(digits.rglob("*"))
    for tool, what in (
        (evaluate, ["--results", str(results)]),
        (evaluate, ["--weights", str(weights)]),
        (inspect_data, []),
    ):
        arguments = [*what, *data_arguments(digits), "--output", str(digits)]
        if tool is inspect_data:
            arguments = ["--data", str(digits), "--output", str(digits)]
        message = error_of(tool, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert message.endswith("is the folder of the dataset: name another one for the output")
    assert sorted(digits.rglob("*")) == before


def test_numbers_of_proposals_do_not_overlap_on_the_page():
    recalls = {f"recall_{round(100 * threshold)}": 0.5 for threshold in IOU_THRESHOLDS}
    drawn = _draw_proposal_recall(
        [{"count": count} | recalls for count in (10, 100, 115, 160, 300)]
    )
    assert all(f"<!-- {count} -->" in drawn for count in (10, 115, 160, 300))
    assert "<!-- 100 -->" not in drawn


def test_a_full_disk_leaves_no_half_of_a_report(
    digits, results, report, tmp_path, monkeypatch, capsys
):
    sizes = [(report / name).stat().st_size for name in ("report.json", "report.html")]
    assert 2 * sizes[0] < sizes[1]
    folder = tmp_path / "full"
    arguments = ["--results", str(results), *data_arguments(digits), "--output", str(folder)]
    with full_disk(2 * sizes[0]):
        message = error_of(evaluate, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert message == f"error: {folder / 'report.html'}: cannot be written: File too large"
    assert list(folder.iterdir()) == []
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0


def test_the_output_must_be_a_folder(digits, results, tmp_path, monkeypatch, capsys):
    arguments = ["--results", str(results), *data_arguments(digits), "--output", str(results)]
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 2
    assert "results.json: cannot write into this folder" in capsys.readouterr().err


def test_files_of_others_are_not_replaced(digits, results, tmp_path, monkeypatch, capsys):
    weights = save_untrained(tmp_path / "x.safetensors", 10)
    arguments = ["--weights", str(weights), *data_arguments(digits), "--output"]
    of_infer = json.dumps({"files": [], "settings": {}, "images": [], "categories": []})
    for name, files in {
        "infer": {"images.json": of_infer, "results.json": "[]"},
        "damaged": {"images.json": of_infer[:-9], "results.json": "[]"},
        "other": {"results.json": "[]"},
        "tests": {"report.json": "{}"},
        "page": {"report.html": "<p>"},
        "run": {"config.yaml": "data: {}", "checkpoints": ""},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)
        message = error_of(
            *(evaluate, *arguments, str(folder)), monkeypatch=monkeypatch, capsys=capsys
        )
        assert f"{folder}: " in message
        assert "choose another output" in message
        assert {path.name: path.read_text() for path in folder.iterdir()} == files
    # Results beside which their report is wanted are not replaced, and infer's folder is infer's.
    of_results = ["--results", str(results), *data_arguments(digits), "--output"]
    assert run(evaluate, *of_results, str(tmp_path / "other"), monkeypatch=monkeypatch) == 0
    assert run(evaluate, *of_results, str(tmp_path / "infer"), monkeypatch=monkeypatch) == 2
    # An earlier report is replaced, and not while another process writes.
    assert run(evaluate, *of_results, str(tmp_path / "other"), monkeypatch=monkeypatch) == 0
    held = "import sys, pathlib; from backbones.common.files import locked\n"
    held += "with locked(pathlib.Path(sys.argv[1])): print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path / "other")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout.readline()
        message = error_of(
            *(evaluate, *of_results, str(tmp_path / "other")),
            monkeypatch=monkeypatch,
            capsys=capsys,
        )
        assert "another program is writing into this folder" in message
        holder.communicate(b"\n")


def test_propose_replaces_proposals_alone(tmp_path, monkeypatch, capsys):
    """Before the weights are read, which are not there."""
    path = tmp_path / "file.json"
    arguments = ["--weights", "nowhere.safetensors", "--output", str(path)]
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}
    for text in ("", '{"images": []}', json.dumps([result]), "weights", "0 0.5 0.5 0.1 0.1"):
        path.write_text(text)
        message = error_of(propose, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert f"{path}: is there already, and is no file of proposals" in message
        assert path.read_text() == text
    one = Proposals(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([0.5]))
    for found in ({}, {7: one}):
        save_proposals(path, found)
        message = error_of(propose, *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert "nowhere.safetensors" in message


def test_names_of_classes_cannot_become_markup(digits, results, tmp_path, monkeypatch):
    root = tmp_path / "digits"
    shutil.copytree(digits, root)
    path = root / "annotations" / "val.json"
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(document))
    arguments = ["--results", str(results), *data_arguments(root), "--output", str(tmp_path)]
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_opens_in_a_browser(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    done = subprocess.run(
        [
            *(browser, *flags, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1100,2400", f"--screenshot={picture}"),
            (report / "report.html").as_uri(),
        ],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 50_000


@pytest.mark.parametrize("named", [[], ["--data.format", "digits"]])
@pytest.mark.parametrize(
    ("tool", "key"), [(evaluate, "results"), (evaluate, "weights"), (propose, "weights")]
)
def test_without_a_dataset_it_is_asked_for(tool, key, named, tmp_path, monkeypatch, capsys):
    """Digits least of all are generated for a detector of something else."""
    monkeypatch.chdir(tmp_path)
    files = {"weights": save_untrained(tmp_path / "x.safetensors", 10), "results": "r.json"}
    arguments = [f"--{key}", str(files[key]), *named]
    message = error_of(tool, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "name the dataset by --data PATH" in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one of weights and results"),
        (["--results", "a.json", "--weights", "b"], "name one of weights and results"),
        (["--results", "nowhere.json"], "nowhere.json: cannot read results"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--results", "a.json", "--precomputed", "p.json"], "precomputed is for weights"),
        (["--results", "a.json", "--precision", "bf16"], "precision is for weights"),
        (["--results", "a.json", "--model.proposals_per_image", "3"], "model is for weights"),
        (["--results", "a.json", "--engine", "torch"], "engine is for weights"),
        (["--results", "a.json", "--score_thresh", "2"], r"score_thresh must be in"),
        (["--weights", "a", "--precision", "int8"], "int8 and calibration_split belong together"),
        (
            ["--weights", "a", "--precision", "int8", "--calibration_split", "val"],
            "calibration_split must be another split than the one that is scored, val",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, words, digits, tmp_path, monkeypatch, capsys):
    arguments = [*arguments, *data_arguments(digits), "--output", str(tmp_path / "out")]
    message = error_of(evaluate, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("of_training", "there", "split"),
    [
        ({"test": "night", "val": "val"}, ["night", "test"], "night"),
        ({"test": None, "val": "dusk"}, ["test", "dusk"], "test"),
        ({"test": None, "val": "dusk"}, ["dusk", "val"], "dusk"),
        ({}, ["val"], "val"),
    ],
)
def test_the_split_is_what_the_training_was_tested_on(of_training, there, split, tmp_path):
    for name in there:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{name}.json").write_text("{}")
    config = EvaluateConfig(weights="a", data=DatasetConfig(root=str(tmp_path)))
    assert with_split(config, of_training)[1] == split
