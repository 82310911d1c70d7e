"""What `infer` finds, in other formats: written, read again, replaced, and left by a kill."""

import csv
import os
import signal
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers.untrained_detector import save_untrained
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.common.errors import UserError
from backbones.common.files import numbered_folder
from backbones.common.images import read_image, write_image
from detect.blocks import PartsOfTensor
from detect.checkpoint import load_detector
from detect.data import load_voc, load_yolo
from detect.inference import annotate
from detect.inference.annotate import infer
from detect.inference.formats import csv_rows
from detect.inference.results import Frame, Results
from detect.media.crops import class_folders
from detect.media.sources import Source
from detect.media.video import slideshow

FORMATS = ("yolo", "voc", "csv", "crops")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = save_untrained(tmp_path_factory.mktemp("detector") / "best.safetensors", 3)
    detector = load_detector(path, "cpu")
    detector.class_names = ["red cell", "<&/>", "7"]
    return detector


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("inputs")
    noise = torch.randint(0, 256, (10, 3, 64, 96), dtype=torch.uint8)
    write_image(folder / "a b.jpg", noise[0])
    write_image(folder / "a b.png", noise[1])
    slideshow(folder / "clip.png.mp4", list(noise), 10, (64, 96))
    return Source([folder / "a b.jpg", folder / "a b.png"], [folder / "clip.png.mp4"])


def boxes(width: int, height: int) -> st.SearchStrategy:
    """Box, label and score; no side shorter than what VOC counts as one."""

    def interval(length: int) -> st.SearchStrategy:
        ends = st.tuples(*[st.floats(0, length, width=32)] * 2).map(sorted).map(tuple)
        return ends.filter(lambda ends: ends[1] - ends[0] > 1.5)

    return st.tuples(interval(width), interval(height), st.integers(1, 3), st.floats(0, 1))


def corners_of(one: tuple) -> tuple:
    """In whole pixels: a row that stands there twice is one object to YOLO."""
    return tuple(round(value) for interval in one[:2] for value in interval)


@settings(max_examples=8, deadline=None)
@given(data=st.data(), size=st.tuples(st.integers(8, 300), st.integers(8, 300)))
def test_what_is_written_is_read_again(data, size):
    height, width = size
    found = data.draw(
        st.lists(
            boxes(width, height),
            max_size=6,
            unique_by=corners_of,
        )
    )
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    detections = {
        "boxes": torch.tensor([(x[0], y[0], x[1], y[1]) for x, y, _, _ in found]).reshape(-1, 4),
        "labels": torch.tensor([label for _, _, label, _ in found], dtype=torch.int64),
        "scores": torch.tensor([score for *_, score in found]),
    }
    names = ["röd cell", "<&>", "7"]
    with TemporaryDirectory() as folder:
        output, file = Path(folder, "out"), Path(folder, "picture.png")
        write_image(file, image)
        with Results(output, names, [4, 5, 6], FORMATS, pre_labels=True) as results:
            results.add(PartsOfTensor(image), Frame(file), output / "ü.jpg", detections)
            frame = Frame(Path("v.mp4"), 3, 0.5)
            results.add(PartsOfTensor(image), frame, output / "v.mp4", detections)
        datasets = [load_yolo(output / "yolo", "train"), load_voc(output / "voc", "train", names)]
        rows = list(csv.DictReader((output / "results.csv").open()))
        crops = list((output / "crops").rglob("*.jpg"))
    for dataset in datasets:
        assert dataset.class_names == names
        assert len(dataset) == 2
        for index in range(2):
            sample = dataset.sample(index)
            assert (sample.height, sample.width) == (height, width)
            assert sample.labels.tolist() == detections["labels"].tolist()
            assert torch.allclose(sample.boxes, detections["boxes"], atol=0.011)
    assert len(crops) == len(rows) == 2 * len(found)
    for row, (x, y, label, score) in zip(rows, found * 2, strict=True):
        assert row["class"] == names[label - 1]
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)
        corners = [float(row[key]) for key in ("x1", "y1", "x2", "y2")]
        assert corners == pytest.approx([x[0], y[0], x[1], y[1]], abs=0.006)
    moments = {(row["file"], row["frame"], row["time"]) for row in rows}
    assert moments == ({(str(file), "", ""), ("v.mp4", "3", "0.500000")} if found else set())


def test_a_spreadsheet_has_nothing_to_compute():
    names = dict(enumerate(["=cmd()", "+", "a=b", "-1"]))
    results = [{"category_id": key, "bbox": [0, 0, 1, 1], "score": 0.5} for key in names]
    rows = csv_rows(results, {"file_name": "@a.jpg"}, names).splitlines()
    assert [row.split(",")[3] for row in rows] == ["'=cmd()", "+", "a=b", "'-1"]
    assert {row.split(",")[0] for row in rows} == {"'@a.jpg"}


def test_two_classes_never_share_a_folder():
    names = ["a/b", "a_b", "..", "/", "../../x", "a/b_2", "\u200b"]
    folders = ["a_b", "a_b_2", "_", "__2", "_.._x", "a_b_2_2", "__3"]
    assert class_folders(names) == folders


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_all_formats_is_replaced_as_a_whole(detector, inputs, tmp_path, caplog):
    output = tmp_path / "out"
    report = infer(detector, inputs, output, score_thresh=0.0, save=FORMATS, pre_labels=True)
    assert report.images == 12
    assert f"see images.json: 1, first {inputs.images[1]}: a b_2.jpg" in caplog.text
    # Two pictures of one name, and a video whose name ends like a picture's.
    for root, read in (
        ("yolo", load_yolo),
        ("voc", lambda *at: load_voc(*at, detector.class_names)),
    ):
        dataset = read(output / root, "train")
        assert len(dataset) == 12
        kept = [dataset.sample(index) for index in range(12)]
        own = {Path(sample.path).name: sample for sample in kept}
        assert torch.equal(read_image(own["a b_2.png"].path), read_image(inputs.images[1]))
        assert sum(len(sample.labels) for sample in kept) > 12
    crops = [path for path in below(output) if path.startswith("crops/")]
    assert len(crops) == report.objects.total()
    assert {Path(path).parts[1] for path in crops} == {"red cell", "<&_>", "7"}

    # Somebody's own file among them: nothing is touched.
    (output / "yolo/labels/mine.txt").write_text("mine")
    before = below(output)
    other = Source(inputs.images[:1], [])
    again = {"score_thresh": 0.0, "save": ["yolo"], "overwrite": True}
    with pytest.raises(UserError, match=r"yolo/labels/mine\.txt: is there already, and infer did"):
        infer(detector, other, output, **again)
    assert below(output) == before
    # In a folder that this run does not write into, it stays alone.
    infer(detector, other, output, **again | {"save": []})
    assert below(output) == {"a b.jpg", "images.json", "results.json", "yolo/labels/mine.txt"}
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["yolo"]


def test_classes_travel_where_nothing_was_found(detector, inputs, tmp_path):
    infer(detector, inputs, tmp_path, score_thresh=1.0, save=["voc", "yolo"], pre_labels=True)
    for root, read in (("voc", load_voc), ("yolo", load_yolo)):
        dataset = read(tmp_path / root, "train")
        assert dataset.class_names == ["red cell", "<&/>", "7"]
        assert not sum(dataset.objects_by_class().values())


def test_without_pre_labels_there_are_scores_and_no_images(detector, inputs, tmp_path):
    infer(detector, Source(inputs.images, []), tmp_path, score_thresh=0.0, save=["yolo", "voc"])
    rows = (tmp_path / "yolo/labels/a b.txt").read_text().splitlines()
    assert rows
    assert {len(row.split()) for row in rows} == {6}
    assert (tmp_path / "voc/Annotations/a b.xml").read_text().count("<score>") == len(rows)
    assert not (tmp_path / "yolo/images").exists()
    assert not (tmp_path / "voc/JPEGImages").exists()


def test_links_in_the_output_are_not_followed(detector, inputs, tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "out"
    pictures = Source(inputs.images, [])
    infer(detector, pictures, output, score_thresh=0.0, save=["yolo"])
    (output / "yolo").rename(mine)
    (output / "yolo").symlink_to(mine)
    before = below(mine)
    with pytest.raises(UserError, match="yolo: is there already, and infer did not write it"):
        infer(detector, pictures, output, score_thresh=0.0, save=["yolo"], overwrite=True)
    infer(detector, pictures, output, score_thresh=0.0, overwrite=True)
    assert below(mine) == before


def test_killed_it_leaves_data_sets_that_can_be_read(detector, inputs, tmp_path):
    child = os.fork()
    if child == 0:
        draw = annotate.draw_detections

        def slow(*arguments):
            time.sleep(0.05)
            return draw(*arguments)

        annotate.draw_detections = slow
        infer(detector, inputs, tmp_path, score_thresh=0.0, save=FORMATS, pre_labels=True)
        os._exit(0)
    split, deadline = tmp_path / "voc/ImageSets/Main/train.txt", time.monotonic() + 60
    while not split.exists() or len(split.read_text().splitlines()) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    yolo = load_yolo(tmp_path / "yolo", "train")
    voc = load_voc(tmp_path / "voc", "train", detector.class_names)
    assert 6 <= len(voc) < 12
    assert len(voc) <= len(yolo) <= len(voc) + 1
    for dataset in (yolo, voc):
        assert all(len(dataset.sample(index).labels) for index in range(len(dataset)))
    (tmp_path / "yolo/labels/.a b.txt.abc123.tmp").write_text("half")
    infer(detector, Source(inputs.images, []), tmp_path, score_thresh=0.0, overwrite=True)
    assert below(tmp_path) <= {"a b.jpg", "a b_2.jpg", "images.json", "results.json", ".lock"}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_two_runs_at_once_get_a_folder_each(tmp_path):
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            (numbered_folder(tmp_path / "runs/infer") / str(number)).touch()
            os._exit(0)
        children.append(child)
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        *("infer", *(f"infer{number}" for number in range(2, 9)))
    }
    assert all(len(list(path.iterdir())) == 1 for path in (tmp_path / "runs").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot write into this folder"):
        numbered_folder(tmp_path / "file/infer")


def test_classes_are_chosen_by_name(detector, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'Red cel' is no class of this detector: did you mean red"):
        detector.keep_classes(["7", "Red cel"])
    try:
        detector.keep_classes(["7"])
        reports = [infer(detector, inputs, score_thresh=0.0) for _ in range(2)]
    finally:
        detector.model.wanted = None
    assert [str(report.output) for report in reports] == ["runs/infer", "runs/infer2"]
    assert str(reports[1]).endswith(f"(7 {reports[1].objects['7']}), written to runs/infer2")
    assert reports[1].objects["7"] >= 12


def test_a_class_may_have_a_longer_name_than_a_folder_can(detector, inputs, tmp_path, monkeypatch):
    names = ["\u00fc" * 200, "b" * 5000, "c"]
    monkeypatch.setattr(detector, "class_names", names)
    for overwrite in (False, True):
        infer(detector, inputs, tmp_path, score_thresh=0.0, save=["crops"], overwrite=overwrite)
    there = {path.name for path in (tmp_path / "crops").iterdir()}
    assert there <= {"\u00fc" * 100, "b" * 200, "c"}
    assert len(there) > 1
