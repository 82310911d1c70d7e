"""What `infer` refuses before it works, and what a run that goes on does again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.repacking import repack
from helpers.shard_server import serve
from helpers.tool_runs import error_of
from helpers.untrained_detector import save_untrained

from backbones.common.errors import UserError
from backbones.common.images import write_image
from backbones.networks.weights import load_weights, save_weights
from detect import checkpoint
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
    repack(whole, path)
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
    script = "import fcntl; f = open('.lock', 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=own, **pipes) as other:
        other.stdout.readline()
        said = error_of(command, *arguments, str(own), monkeypatch=monkeypatch, capsys=capsys)
        other.communicate(b"\n")
    assert "own: another program is writing into this folder: wait until it ends" in said


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


def test_the_digest_is_of_the_weights_that_were_loaded(weights, monkeypatch):
    """Though training replaces the file meanwhile."""
    old = load_detector(weights, "cpu").metadata["digest"]
    state, metadata = load_weights(weights)
    build = checkpoint.build_detector

    def replace_and_build(*arguments):
        save_weights(weights, state | {"cls_score.bias": state["cls_score.bias"] + 1}, metadata)
        return build(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "build_detector", replace_and_build)
        meanwhile = load_detector(weights, "cpu")
    assert torch.equal(meanwhile.model.cls_score.bias, state["cls_score.bias"])
    assert meanwhile.metadata["digest"] == old
    assert load_detector(weights, "cpu").metadata["digest"] != old


def test_a_file_without_a_digest_goes_by_its_tensors(weights):
    state, metadata = load_weights(weights)
    texts = {key: json.dumps(value) for key, value in metadata.items() if key != "digest"}
    digests = []
    for bias in (0, 0, 1):
        tensors = state | {"cls_score.bias": state["cls_score.bias"] + bias}
        safetensors.torch.save_file(tensors, weights, texts)
        digests.append(load_detector(weights, "cpu").metadata["digest"])
    assert digests[0] == digests[1] != digests[2]


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


@pytest.mark.parametrize("is_last", [True, False])
def test_what_a_live_stream_gave_outlives_a_resumed_run(is_last, weights, tmp_path):
    (tmp_path / "net").mkdir()
    broken_video(tmp_path / "net/live.mkv")
    stream = (tmp_path / "net/live.mkv").rename(tmp_path / "net/live")
    whole, output = stream.read_bytes(), tmp_path / "out"
    slideshow(tmp_path / "b.mp4", list(NOISE[:3]), 10, (64, 64))
    detector = load_detector(weights, "cpu")
    options = {"score_thresh": 0.0, "resume": True}

    def seen() -> list[int]:
        images = json.loads((output / "images.json").read_text())["images"]
        return [image["frame"] for image in images if image["annotated"] == "live.mp4"]

    with serve(tmp_path / "net") as (url, _):
        found = find_inputs([f"{url}/live", *([] if is_last else [str(tmp_path / "b.mp4")])])
        assert infer(detector, found, output, **options).errors == []
        drawn = (output / "live.mp4").read_bytes()
        stream.write_bytes(whole[: len(whole) // 2])  # by now it gives other frames
        for _ in range(2):
            report = infer(detector, found, output, **options)
            assert (report.images, report.errors) == (12 if is_last else 15, [])
            assert seen() == list(range(12))
            assert (output / "live.mp4").read_bytes() == drawn
        # Without its video it is looked at again, and then the new frames are all that count.
        (output / "live.mp4").unlink()
        infer(detector, found, output, **options)
        assert 0 < len(seen()) < 12


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "has a.jpg of https://me:***@host"),
        ({"objects": 10**6}, "first of https://me:***@host"),
    ],
)
def test_secrets_in_older_lists_are_not_shown(changed, words, weights, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name, NOISE[0])
    source, output = Source([tmp_path / "a.jpg", tmp_path / "b.jpg"], []), tmp_path / "out"
    detector = load_detector(weights, "cpu")
    infer(detector, source, output, score_thresh=0.0)
    document = json.loads((output / "images.json").read_text())
    document["images"][0] |= {"file_name": "https://me:hidden@host/a.jpg?token=hidden"} | changed
    (output / "images.json").write_text(json.dumps(document))
    with pytest.raises(UserError) as error:
        infer(detector, source, output, score_thresh=0.0, resume=True)
    assert f"{words}/a.jpg?token=***" in str(error.value)
    assert "hidden" not in str(error.value)


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
