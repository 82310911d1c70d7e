"""What people have changed in the folder of `infer`, or taken from its inputs, is not lost."""

import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.untrained_detector import save_untrained

from backbones.common.errors import DiskError, UserError
from backbones.common.images import write_image
from detect.checkpoint import load_detector
from detect.inference.annotate import check_output, infer
from detect.inference.outputs import GrowingList
from detect.media.sources import Source
from detect.media.video import slideshow

NOISE = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = save_untrained(tmp_path_factory.mktemp("detector") / "x.safetensors", 3)
    return load_detector(path, "cpu")


@pytest.fixture
def three(tmp_path) -> list[Path]:
    for number, name in enumerate("abc"):
        write_image(tmp_path / f"{name}.jpg", NOISE[number])
    return [tmp_path / f"{name}.jpg" for name in "abc"]


LABELLED = {"score_thresh": 0.0, "save": ("csv", "voc", "yolo"), "pre_labels": True}


def changed_words(path: Path) -> str:
    return re.escape(f"{path}: was changed since infer wrote it (such files: ")


@pytest.mark.parametrize("broken_last", [False, True])
def test_corrected_labels_of_a_run_that_ended_are_kept(broken_last, detector, tmp_path, three):
    """Also of its last picture, and where a video that cannot be opened came after it."""
    output = tmp_path / "out"
    (tmp_path / "x.mp4").write_text("no video")
    videos = [tmp_path / "x.mp4"] if broken_last else []
    infer(detector, Source(three[:2], videos), output, **LABELLED)
    corrected = {
        output / "yolo/labels/a.txt": "0 0.5 0.5 0.5 0.5\n",
        output / "yolo/labels/b.txt": "1 0.5 0.5 0.5 0.5\n",
        output / "voc/Annotations/b.xml": "<annotation/>",
        output / "yolo/data.yaml": "train: images\nnames: [x, y, z, new]\n",
    }
    for path, text in corrected.items():
        path.write_text(text)
    for images in (three[:2], three, three):
        report = infer(detector, Source(images, videos), output, **LABELLED, resume=True)
        assert report.images == len(images)
        assert {path: path.read_text() for path in corrected} == corrected
    assert (output / "yolo/labels/c.txt").exists()


@pytest.mark.parametrize("name", ["yolo/labels/b.txt", "yolo/data.yaml", "results.csv"])
def test_what_was_corrected_is_not_deleted(name, detector, tmp_path, three):
    """Not even after a run that went on with it, which wrote its lists anew."""
    source, output = Source(three, []), tmp_path / "out"
    infer(detector, Source(three[:2], []), output, **LABELLED)
    infer(detector, source, output, **LABELLED, overwrite=True)  # nobody has touched it
    with open(output / name, "a") as file:
        file.write("\n")
    changed = (output / name).read_bytes()
    words = changed_words(output / name) + r"1\), and --(resume|overwrite) would"
    if name == "results.csv":
        with pytest.raises(UserError, match=words):
            infer(detector, source, output, **LABELLED, resume=True)
    else:
        infer(detector, source, output, **LABELLED, resume=True)
    for check in (check_output, partial(infer, detector)):
        own = LABELLED if check is not check_output else {"save": LABELLED["save"]}
        with pytest.raises(UserError, match=words):
            check(source, output, **own, overwrite=True)
    assert (output / name).read_bytes() == changed
    assert (output / "a.jpg").exists()
    (output / name).rename(tmp_path / "kept")
    infer(detector, source, output, **LABELLED, overwrite=True)
    assert (output / name).read_bytes() != changed


def test_labels_of_what_is_done_again_are_as_before_or_refused(detector, tmp_path, three):
    source, output = Source(three, []), tmp_path / "out"
    infer(detector, source, output, **LABELLED)
    label = output / "yolo/labels/b.txt"
    written = label.read_text()
    label.write_text("")
    (output / "b.jpg").unlink()
    with pytest.raises(UserError, match=changed_words(label)):
        infer(detector, source, output, **LABELLED, resume=True)
    assert label.read_text() == ""
    label.unlink()
    infer(detector, source, output, **LABELLED, resume=True)
    assert len(label.read_text().splitlines()) == len(written.splitlines()) > 0


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_an_input_that_is_gone_is_refused_wherever_it_stood(gone, detector, tmp_path, three):
    output = tmp_path / "out"
    infer(detector, Source(three, []), output, **LABELLED)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    rest = Source([path for path in three if path != three[gone]], [])
    words = f"has {three[gone].name} of {three[gone]}, which is not among these inputs"
    with pytest.raises(UserError, match=words):
        infer(detector, rest, output, **LABELLED, resume=True)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    infer(detector, rest, output, **LABELLED, overwrite=True)
    assert not (output / three[gone].name).exists()


def test_nothing_is_left_of_frames_that_a_video_no_longer_has(detector, tmp_path):
    clip, output = tmp_path / "clip.mp4", tmp_path / "out"
    slideshow(clip, list(NOISE[:5]), 10, (64, 64))
    source = Source([], [clip])
    infer(detector, source, output, **LABELLED)
    (output / "clip.mp4").unlink()
    slideshow(clip, list(NOISE[:2]), 10, (64, 64))
    assert infer(detector, source, output, **LABELLED, resume=True).images == 2
    assert len(list((output / "yolo/labels/clip.mp4").iterdir())) == 2
    infer(detector, source, output, **LABELLED, overwrite=True)


@pytest.mark.parametrize("way", ["kill", "full disk"])
def test_a_stop_between_two_lists_is_nobodys_change(way, detector, tmp_path, three, monkeypatch):
    output, add = tmp_path / "out", GrowingList.add

    def stop(self, entries, tail=None):
        if tail is None and (output / "results.csv").read_text().count("b.jpg"):
            if way == "kill":
                os._exit(9)
            raise DiskError("full")
        add(self, entries, tail)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(GrowingList, "add", stop)
        try:
            infer(detector, Source(three, []), output, **LABELLED)
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if way == "kill" else 7)
    report = infer(detector, Source(three, []), output, **LABELLED, resume=True)
    assert report.images == 3


def test_a_corrected_list_is_kept_where_the_last_input_is_not_whole(detector, tmp_path, three):
    """As Ctrl-C leaves it in a video."""
    output = tmp_path / "out"
    infer(detector, Source(three[:2], []), output, **LABELLED)
    images = output / "images.json"
    images.write_text(
        images.read_text().replace('"last_is_whole": true ', '"last_is_whole": false')
    )
    (output / "results.csv").open("a").write("corrected\n")
    with pytest.raises(UserError, match=changed_words(output / "results.csv")):
        infer(detector, Source(three, []), output, **LABELLED, resume=True)
