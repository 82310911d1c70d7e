"""What `infer` leaves in its folder when it is ended at any moment, and what it finds there."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.full_disk import full_disk
from helpers.untrained_detector import save_untrained

from backbones.common.errors import DiskError, UserError
from backbones.common.files import locked
from backbones.common.images import read_image, write_image
from detect.checkpoint import load_detector
from detect.inference import annotate
from detect.inference.annotate import infer
from detect.inference.outputs import GrowingList
from detect.media.sources import Source
from detect.media.video import VideoReader, slideshow


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = save_untrained(tmp_path_factory.mktemp("detector") / "best.safetensors", 3)
    return load_detector(path, "cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("inputs")
    noise = torch.randint(0, 256, (30, 3, 64, 64), dtype=torch.uint8)
    write_image(folder / "a.jpg", noise[0])
    slideshow(folder / "clip.mp4", list(noise), 10, (64, 64))
    return Source([folder / "a.jpg"], [folder / "clip.mp4"])


def start(detector, inputs: Source, output: Path, seconds: float) -> int:
    """`infer` in a process of its own, which takes so long for each image; its id."""
    child = os.fork()
    if child:
        return child
    code, draw = 1, annotate.draw_detections

    def slow(*arguments):
        time.sleep(seconds)
        return draw(*arguments)

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        annotate.draw_detections = slow
        infer(detector, inputs, output, score_thresh=0.0)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def listed(output: Path) -> list[dict]:
    """Images that are done, of two files that are always whole."""
    images = json.loads((output / "images.json").read_text())["images"]
    results = json.loads((output / "results.json").read_text())
    assert {result["image_id"] for result in results} >= {image["id"] for image in images}
    return images


def wait_for(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not (output / "results.json").exists() or len(listed(output)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_a_video_it_keeps_what_was_done(detector, inputs, tmp_path, number):
    child = start(detector, inputs, tmp_path, 0.05)
    wait_for(tmp_path, 4)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert os.waitstatus_to_exitcode(status) == codes[number]
    images = listed(tmp_path)
    assert 4 <= len(images) < 30
    if number == signal.SIGKILL:
        # A frame may be on its way, half of a list, or a second of the video.
        (tmp_path / ".clip.mp4.abc123.tmp").write_text("half")
        (tmp_path / ".mine.abc123.tmp").write_text("mine")
    else:
        assert len(list(VideoReader(tmp_path / "clip.mp4"))) == len(images) - 1
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *("a.jpg", "clip.mp4", "images.json", "results.json"),
        ]
    # The next run is refused by nothing that is left, and leaves nothing of it.
    infer(detector, Source(inputs.images, []), tmp_path, score_thresh=0.0, overwrite=True)
    assert len(listed(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("a.jpg", "images.json", "results.json", ".lock", ".mine.abc123.tmp"),
    }


def test_a_second_ctrl_c_ends_it_at_once(detector, inputs, tmp_path):
    child = start(detector, inputs, tmp_path, 3.0)
    wait_for(tmp_path, 1)
    os.kill(child, signal.SIGINT)
    time.sleep(1.2)
    began = time.monotonic()
    os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert time.monotonic() - began < 1
    assert len(listed(tmp_path)) == 1


def test_nothing_of_an_earlier_run_passes_for_this_one(detector, inputs, tmp_path):
    infer(detector, inputs, tmp_path, score_thresh=0.0)
    (tmp_path / "notes.txt").write_text("mine")
    other = tmp_path.parent / "b.jpg"
    write_image(other, torch.zeros(3, 64, 64, dtype=torch.uint8))
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="has the results of an earlier run: "):
        infer(detector, Source([other], []), tmp_path, score_thresh=0.0)
    assert before == sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    infer(detector, Source([other], []), tmp_path, score_thresh=0.0, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("b.jpg", "images.json", "notes.txt", "results.json"),
    ]


@pytest.mark.parametrize("name", ["a.jpg", "clip.mp4", "results.json", "images.json"])
def test_what_it_did_not_write_is_not_overwritten(detector, inputs, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: is there already, and infer did not write it"):
        infer(detector, inputs, tmp_path, score_thresh=0.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(
    "annotated", ["../mine.jpg", "/mine.jpg", "yolo/../../mine.jpg", "mine.txt", 3, None]
)
@pytest.mark.parametrize("key", ["annotated", "files"])
def test_a_list_that_it_did_not_write_is_not_obeyed(detector, inputs, tmp_path, annotated, key):
    mine, output = tmp_path / "mine.jpg", tmp_path / "out"
    output.mkdir()
    mine.write_text("precious")
    entry = {"annotated": "a.jpg"} | {key: [annotated] if key == "files" else annotated}
    (output / "images.json").write_text(json.dumps({"images": [entry]}))
    with pytest.raises(UserError, match=r"images\.json: is there already, and infer did not"):
        infer(detector, inputs, output, score_thresh=0.0, overwrite=True)
    assert mine.read_text() == "precious"


def test_the_folder_of_a_training_is_no_output(detector, inputs, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("epochs: 1")
    with pytest.raises(UserError, match="is the run folder of a training: choose another output"):
        infer(detector, inputs, tmp_path, score_thresh=0.0, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_planted_links_are_not_followed(detector, inputs, tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "out"
    mine.write_text("precious")
    output.mkdir()
    for name in (".results.json.partial", ".images.json.partial", ".clip.partial.mp4"):
        (output / name).symlink_to(mine)
    infer(detector, inputs, output, score_thresh=0.0)
    assert mine.read_text() == "precious"


def test_two_programs_do_not_share_a_folder(detector, inputs, tmp_path):
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            signal.pause()
    while not (tmp_path / ".lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    try:
        with pytest.raises(UserError, match="another program is writing into this folder"):
            infer(detector, inputs, tmp_path, score_thresh=0.0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("name", ["b.jpg", "clip.mp4"])
def test_a_full_disk_ends_it_at_the_file_and_leaves_what_is_whole(
    detector, inputs, tmp_path, name, caplog
):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_image(source / "a.png", torch.zeros(3, 64, 64, dtype=torch.uint8))
    noise = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    write_image(source / "b.png", noise)
    images = [source / "a.png", *([source / "b.png"] if name == "b.jpg" else [])]
    given = Source(images, inputs.videos)
    words = rf"^{output / name}: cannot be written: File too large$"
    with full_disk(8000), pytest.raises(DiskError, match=words):
        infer(detector, given, output, score_thresh=1.0)
    assert torch.equal(read_image(output / "a.jpg"), torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert json.loads((output / "images.json").read_text())["images"][0]["annotated"] == "a.jpg"
    assert json.loads((output / "results.json").read_text()) == []
    assert f"{output} keeps what was found so far, images: " in caplog.text
    infer(detector, given, output, score_thresh=1.0, resume=True)
    resumed = json.loads((output / "images.json").read_text())["images"]
    assert len(resumed) == len(images) + 30


def test_a_list_is_whole_on_a_full_disk(tmp_path):
    path = tmp_path / "list.json"
    with GrowingList(path, '{"a": [', '], "b": 1}') as growing:
        assert json.loads(path.read_text()) == {"a": [], "b": 1}
        growing.add([{"x": 1}])
        growing.add([])
        with (
            full_disk(40),
            pytest.raises(UserError, match=r"list\.json: cannot be written: File too large"),
        ):
            growing.add([{"x": number} for number in range(9)])
        assert json.loads(path.read_text()) == {"a": [{"x": 1}], "b": 1}
        growing.add([{"x": 2}, {"x": 3}])
    assert json.loads(path.read_text()) == {"a": [{"x": 1}, {"x": 2}, {"x": 3}], "b": 1}
