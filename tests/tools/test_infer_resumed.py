"""What `infer` refuses before it works, and what a run that goes on does again."""

import json
from pathlib import Path

import av
import pytest
import torch
from helpers.tool_runs import error_of
from helpers.untrained_detector import save_untrained

from backbones.common.errors import UserError
from backbones.common.images import write_image
from backbones.networks.weights import load_weights, save_weights
from detect.checkpoint import load_detector
from detect.commands import infer as command
from detect.inference.annotate import infer
from detect.media.sources import Source, find_inputs
from detect.media.video import slideshow

NOISE = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def weights(tmp_path) -> Path:
    return save_untrained(tmp_path / "x.safetensors", 3)


def broken_video(path: Path) -> None:
    """The first half of a Matroska, which can be read to where it breaks off."""
    whole = path.with_suffix(".mp4")
    slideshow(whole, list(NOISE), 10, (64, 64))
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole.unlink()


def test_a_folder_is_refused_before_the_weights_are_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_detector", lambda *_: pytest.fail("loaded"))
    write_image(tmp_path / "a.jpg", NOISE[0])
    arguments = ["--weights", "x", "--inputs", str(tmp_path / "a.jpg"), "--output"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.jpg").write_text("mine")
    own = tmp_path / "own"
    own.mkdir()
    (own / "images.json").write_text('{"images": []}')
    for output, more, words in (
        (tmp_path / "a.jpg", [], "a.jpg: cannot write into this folder"),
        (tmp_path, [], "a.jpg: the result would overwrite this input"),
        (tmp_path / "mine", ["--overwrite"], "is there already, and infer did not write it"),
        (own, [], "own: has the results of an earlier run"),
    ):
        given = (*arguments, str(output), *more)
        assert words in error_of(command, *given, monkeypatch=monkeypatch, capsys=capsys)
    assert (tmp_path / "mine/a.jpg").read_text() == "mine"


def test_other_weights_at_the_same_place_are_not_gone_on_with(weights, tmp_path):
    write_image(tmp_path / "a.jpg", NOISE[0])
    source = Source([tmp_path / "a.jpg"], [])
    infer(load_detector(weights, "cpu"), source, tmp_path / "out", score_thresh=0.0)
    state, metadata = load_weights(weights)
    infer(load_detector(weights, "cpu"), source, tmp_path / "out", score_thresh=0.0, resume=True)
    state["cls_score.bias"] += 1
    save_weights(weights, state, metadata)
    with pytest.raises(UserError, match="out: was begun with another detector"):
        infer(
            *(load_detector(weights, "cpu"), source, tmp_path / "out"),
            score_thresh=0.0,
            resume=True,
        )


def test_a_video_that_broke_off_is_tried_again(weights, tmp_path):
    broken, output = tmp_path / "a.mkv", tmp_path / "out"
    broken_video(broken)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    slideshow(tmp_path / "b.mp4", list(NOISE[:3]), 10, (64, 64))
    detector = load_detector(weights, "cpu")
    source = Source([], [broken, tmp_path / "b.mp4"])
    options = {"score_thresh": 0.0, "save": ("csv",)}

    def failed() -> list[str]:
        return json.loads((output / "images.json").read_text()).get("failed", [])

    first = infer(detector, source, output, **options)
    assert 3 < first.images < 3 + 12
    assert failed() == ["a.mp4"]
    # Still broken, it is named again and its frames count once; whole, it is done.
    again = infer(detector, source, output, **options, resume=True)
    assert (again.images, again.errors) == (first.images, first.errors)
    assert failed() == ["a.mp4"]
    broken.write_bytes(whole)
    report = infer(detector, source, output, **options, resume=True)
    assert (report.images, report.errors, failed()) == (15, [], [])
    infer(detector, source, tmp_path / "one", **options)
    for name in ("images.json", "results.json", "results.csv"):
        assert (output / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_input_in_several_spellings_counts_once(tmp_path, monkeypatch, caplog):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name, NOISE[0])
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "other").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ["a.jpg", "./a.jpg", str(tmp_path / "a.jpg"), "other/a.jpg", "b.jpg", "link.jpg"]
    assert find_inputs(names).images == [Path("a.jpg"), Path("b.jpg"), Path("link.jpg")]
    assert f"inputs left out as repeats: 3, first {'a.jpg'}" in caplog.text
    caplog.clear()
    find_inputs(["a.jpg", "b.jpg"])
    assert not caplog.text
