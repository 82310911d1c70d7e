"""`inspect_data` as a user meets it, and a run that remembers its data."""

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.tiny_detector import TINY
from helpers.tool_runs import error_of, run
from PIL import Image

from backbones.common.config import read_yaml
from detect.commands import evaluate, inspect_data, train_detector


@pytest.fixture(scope="module")
def export_of_yolo(tmp_path_factory) -> Path:
    """Twelve pictures of squares, of six cameras, in one folder."""
    root = tmp_path_factory.mktemp("export")
    (root / "classes.txt").write_text("square\n<b>\n")
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 120, (96, 128, 3), np.uint8)
        pixels[24:72, 32:96] = 255
        (root / "images").mkdir(exist_ok=True)
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"images/cam{number // 2}_{number}.png")
        row = "0 0.5 0.5 0.5 0.5\n" if number else ""
        (root / f"labels/cam{number // 2}_{number}.txt").write_text(row)
    return root


def test_a_page_and_a_sheet_of_pictures(export_of_yolo, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    arguments = ["--data", str(export_of_yolo), "--output", str(tmp_path / "out")]
    assert run(inspect_data, *arguments, monkeypatch=monkeypatch) == 0
    assert "data.html" in capsys.readouterr().out
    assert f"{export_of_yolo}: YOLO (classes.txt), splits: train" in caplog.text
    page = (tmp_path / "out/data.html").read_text()
    assert "of 12 images" in page
    assert "without an object in any split: &lt;b&gt;" in page
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    captions = re.findall(r"<figcaption>([^<]+)", page)
    assert len(shown) == len(captions) > 6
    assert all(re.fullmatch(r"(train|val): cam\d_\d+\.png ", caption) for caption in captions)
    assert page.count("■</span>&nbsp;square&nbsp;1<") == len(shown)
    assert not re.search(r'(src|href)="(?!data:)', page)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))))
    # The box is drawn in a colour; the picture is grey noise around a white square.
    edge = picture[20:28, 40:90].reshape(-1, 3).astype(int)
    assert (edge.max(axis=1) - edge.min(axis=1)).max() > 100
    sheet = Image.open(tmp_path / "out/sheet.jpg")
    # Two lines stand below each picture, the title in black.
    assert sheet.size == (132 * len(shown) - 4, 96 + 36)
    assert np.asarray(sheet)[97:114, :128].min() < 60


@pytest.mark.parametrize("name", ["data.html", "sheet.jpg"])
def test_files_of_others_stay(name, export_of_yolo, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_text("mine")
    arguments = ["--data", str(export_of_yolo), "--output", str(tmp_path)]
    message = error_of(inspect_data, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert f"inspect_data did not write {name} there" in message
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    for _ in range(2):  # its own are replaced
        assert run(inspect_data, *arguments, monkeypatch=monkeypatch) == 0


def test_pictures_that_cannot_be_read_are_an_error(export_of_yolo, tmp_path, monkeypatch, capsys):
    """As in infer: in a line each or counted, the rest is done, and a script is told."""
    root, page = tmp_path / "data", tmp_path / "out/data.html"
    shutil.copytree(export_of_yolo, root)
    Image.open(root / "images/cam0_1.png").save(root / "images/cam0_1.png", "JPEG")
    os.truncate(root / "images/cam0_1.png", 2000)
    arguments = ["--data", str(root), "--output", str(tmp_path / "out")]
    message = error_of(inspect_data, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert message == "error: pictures that could not be read: 1, see above"
    assert "cam0_1.png" in page.read_text()


def test_a_run_remembers_its_data(export_of_yolo, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(export_of_yolo.parent)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "data": {"format": "digits", "root": "nowhere"}}))
    folder = tmp_path / "run"
    arguments = ["--config", str(config), "--data", export_of_yolo.name, "--run", str(folder)]
    assert run(train_detector, *arguments, monkeypatch=monkeypatch) == 0
    data = read_yaml(folder / "config.yaml")["data"]
    assert (data["format"], data["root"]) == ("yolo", str(export_of_yolo))
    log = (folder / "log.txt").read_text()
    assert "no split val: of 12 images" in log
    assert re.search(r"train: \d+ images, \d without objects, \d+ boxes \(small 0, ", log)

    monkeypatch.chdir("/")
    caplog.clear()
    arguments = ["--weights", str(folder), "--output", str(tmp_path / "report")]
    assert run(evaluate, *arguments, monkeypatch=monkeypatch) == 0
    assert f"{export_of_yolo}: scored on the split val" in caplog.text
    images = json.loads((tmp_path / "report/images.json").read_text())["images"]
    held = int(re.search(r"of 12 images (\d+) are held out", log)[1])
    assert len(images) == held
    message = error_of(
        evaluate, *arguments, "--split", "test", monkeypatch=monkeypatch, capsys=capsys
    )
    assert "no split test; there are: train" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data"], "--data: expected a value after it"),
        (["--data="], "--data: expected a value after it"),
        (["--data", "a", "--data=b"], "--data stands 2 times: it takes one value, once"),
        (["--data", "a", "b"], "--data takes one value: 'b' is a second one"),
        (["--data", "nowhere"], "nowhere: not found"),
        (["--data", ".", "--data.format", "voc"], "not recognised, looked for Pascal VOC"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in error_of(inspect_data, *arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_names_that_are_no_text_and_markup(export_of_yolo, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(export_of_yolo, root)
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        place = root / folder
        os.rename(place / f"cam0_1.{suffix}", os.fsencode(place) + b"/cam0_\xff." + suffix.encode())
        (place / f"cam1_2.{suffix}").rename(place / f"<script>.{suffix}")
    arguments = ["--data", str(root), "--output", str(tmp_path / "out")]
    assert run(inspect_data, *arguments, monkeypatch=monkeypatch) == 0
    page = (tmp_path / "out/data.html").read_text()
    assert "cam0_\\udcff.png" in page
    assert "&lt;script&gt;.png" in page
    assert "<script>" not in page


def test_classes_of_one_split_alone_and_names_of_several_lines(
    tmp_path, monkeypatch, capsys, caplog
):
    for split, names in (("train", ["cup", "tray"]), ("val", ["cup", "mug"])):
        files = [f"{split}\n\r\x85\u2029.png", f"no {split}.png"]
        document = {
            "images": [
                {"id": i, "file_name": file, "width": 64, "height": 48}
                for i, file in enumerate(files)
            ],
            "annotations": [
                {"image_id": i, "category_id": i, "bbox": [9, 9, 30, 30]} for i in range(2)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        }
        (tmp_path / "data/annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/annotations/{split}.json").write_text(json.dumps(document))
        (tmp_path / "data" / split).mkdir()
        Image.new("RGB", (64, 48), (len(split), 0, 0)).save(tmp_path / "data" / split / files[0])
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert run(inspect_data, *arguments, monkeypatch=monkeypatch) == 2
    assert "classes of val that train lacks, for which training refuses it: mug" in caplog.text
    assert "without an object in val: tray" in caplog.text
    assert "no val.png: cannot read image: No such file or directory" in caplog.text
    assert "Errno" not in caplog.text
    page = (tmp_path / "out/data.html").read_text()
    for name, train, val in (("cup", 1, 1), ("tray", 1, 0), ("mug", 0, 1)):
        assert re.search(rf"<tr><td>{name}<td>{train}<td>[^<]+<td>{val}<td>", page)
