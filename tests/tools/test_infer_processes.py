"""Inputs shared by several processes, and gone on with: each once, as one process has them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from helpers.tool_runs import error_of
from helpers.untrained_detector import save_untrained

from backbones.common import distributed
from backbones.common.errors import LostProcessError, UserError
from backbones.common.images import write_image
from detect.checkpoint import load_detector
from detect.commands import infer as command
from detect.data import make_digits
from detect.data.open import DatasetConfig
from detect.inference import annotate
from detect.inference.annotate import infer
from detect.inference.evaluate import EvaluateConfig, evaluate
from detect.media.sources import Source, find_inputs
from detect.media.video import slideshow

FORMATS = ("csv", "yolo", "voc", "crops")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("detector") / "x.safetensors", 3)


@pytest.fixture(scope="module")
def detector(weights):
    return load_detector(weights, "cpu")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Nine pictures, of which one is broken, and two videos."""
    folder = tmp_path_factory.mktemp("inputs")
    noise = torch.randint(0, 256, (9, 3, 64, 80), dtype=torch.uint8)
    for number, pixels in enumerate(noise):
        write_image(folder / f"{number}.png", pixels[:, :, : 48 + 16 * (number % 3)])
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    slideshow(folder / "a.mp4", list(noise[:3]), 10, (64, 80))
    slideshow(folder / "b.mp4", list(noise[3:]), 10, (64, 80))
    return folder


def contents(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.suffix != ".mp4"
    }


def check_same(output: Path, expected: Path) -> None:
    """All but the last digits of results, as batches were others."""
    ours, theirs = contents(output), contents(expected)
    assert ours.keys() == theirs.keys()
    name = "voc/ImageSets/Main/train.txt"
    assert ours.get(name) == theirs.get(name)
    images = [re.sub(rb'"(\w{16})"', b"", files["images.json"]) for files in (ours, theirs)]
    assert images[0] == images[1]
    rows, others = (json.loads(files["results.json"]) for files in (ours, theirs))
    assert len(rows) == len(others) > 50
    for row, other in zip(rows, others, strict=True):
        assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
        assert [*row["bbox"], row["score"]] == pytest.approx([*other["bbox"], other["score"]], 1e-4)
    if "results.csv" in ours:
        csv = [files["results.csv"].decode().splitlines() for files in (ours, theirs)]
        assert [line.split(",")[:4] for line in csv[0]] == [line.split(",")[:4] for line in csv[1]]
    assert not list(output.glob("parts"))


def in_two_processes(work) -> list[int]:
    """Two that can find each other as those of torchrun do; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                work(int(rank))
                code = 0
            except LostProcessError:
                code = 2
            except (KeyboardInterrupt, SystemExit) as error:
                code = getattr(error, "code", 130)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    return children


def codes(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_torchrun_gives_the_results_of_one_process(detector, weights, inputs, tmp_path):
    options = {"score_thresh": 0.0, "save": FORMATS, "pre_labels": True}
    infer(detector, find_inputs([str(inputs)]), tmp_path / "one", **options)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "--", "detect", "infer", "--weights", str(weights)]
    arguments = ["--inputs", "-", "--output", str(tmp_path / "two"), "--score_thresh", "0"]
    arguments += ["--save", *FORMATS, "--pre_labels", "--device", "cpu", "--precision", "fp32"]
    done = subprocess.run(
        [*torchrun, *arguments],
        input=f"{inputs}\n",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr.count("3.png: corrupt or truncated") == 1, done.stderr
    assert done.stderr.count("error: inputs that could not be read: 1, see above") == 1
    (summary,) = done.stdout.splitlines()
    assert re.match(r"images and frames: 17, objects: \d\d+ \(0 \d+, ", summary)
    text = (tmp_path / "two/images.json").read_text()
    # It was deployed; the one here is as it was trained.
    own = json.loads((tmp_path / "one/images.json").read_text())["settings"]["detector"]
    other = json.loads(text)["settings"]["detector"]
    (tmp_path / "two/images.json").write_text(text.replace(other, own))
    check_same(tmp_path / "two", tmp_path / "one")


def test_a_lost_process_ends_the_run_that_is_then_resumed(detector, inputs, tmp_path):
    source, output, draw = find_inputs([str(inputs)]), tmp_path / "two", annotate.draw_detections
    options = {"score_thresh": 0.0, "save": FORMATS, "pre_labels": True}
    infer(detector, source, tmp_path / "one", **options)

    def work(rank: int) -> None:
        def slow(*arguments):
            time.sleep(0.02 + 1.0 * rank)
            return draw(*arguments)

        annotate.draw_detections = slow
        with distributed.processes("cpu"), distributed.lost_processes_are_errors():
            infer(detector, source, output, **options)

    # One dies, and the other says so; then all are asked to end, while one waits for the other.
    # Of what is left then, the second may have no more than the picture that it is at.
    for killed, number, last, done in (
        ([1], signal.SIGKILL, 1, 1),
        ([0, 1], signal.SIGTERM, 3, 0),
    ):
        children = in_two_processes(work)
        second, deadline = output / f"parts/{last}/images.json", time.monotonic() + 200
        while not second.exists() or len(json.loads(second.read_text())["images"]) < done:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for rank in killed:
            os.kill(children[rank], number)
        assert codes(children) == ([2, -9] if number == signal.SIGKILL else [143, 143])
        for part in (output / "parts").iterdir():
            rows = json.loads((part / "results.json").read_text())
            listed = json.loads((part / "images.json").read_text())["images"]
            assert {row["image_id"] for row in rows} >= {image["id"] for image in listed}
            assert all((output / image["annotated"]).exists() for image in listed[:-1])
        options["resume"] = True
    assert len(list((output / "parts").iterdir())) == 4
    with pytest.raises(UserError, match="has the results of an earlier run: choose another output"):
        infer(detector, source, output, **options | {"resume": False})
    with pytest.raises(UserError, match="was begun with another score_thresh, every: resume with"):
        infer(detector, source, output, **options | {"score_thresh": 0.1, "every": 2})
    with pytest.raises(UserError, match=r"has 0\.jpg of .*0\.png, which is not among these inputs"):
        infer(detector, Source(source.images[1:], source.videos), output, **options)
    report = infer(detector, source, output, **options)
    assert report.images == 17
    check_same(output, tmp_path / "one")


def test_a_killed_process_alone_is_gone_on_with(detector, inputs, tmp_path, monkeypatch):
    source, draw = find_inputs([str(inputs)]), annotate.draw_detections
    infer(detector, source, tmp_path / "one", score_thresh=0.0)
    looked_at = []

    def killed(image, *arguments):
        looked_at.append(image)
        if len(looked_at) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(image, *arguments)

    monkeypatch.setattr(annotate, "draw_detections", killed)
    child = os.fork()
    if child == 0:
        infer(detector, source, tmp_path / "two", score_thresh=0.0)
    assert codes([child]) == [-9]
    looked_at += [None] * 5
    infer(detector, source, tmp_path / "two", score_thresh=0.0, resume=True)
    # Four are known to be whole; of all that is done, nothing is looked at again.
    assert len(looked_at) - 5 == 17 - 4
    check_same(tmp_path / "two", tmp_path / "one")
    infer(detector, source, tmp_path / "two", score_thresh=0.0, resume=True)
    assert len(looked_at) - 5 == 17 - 4
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("moment", ["draw_detections", "results.json", "images.json"])
def test_a_run_that_goes_on_may_be_killed_too(detector, inputs, tmp_path, monkeypatch, moment):
    """As it looks at an image, or before it puts one of the joined lists in place."""
    source = Source(find_inputs([str(inputs)]).images, [])
    options = {"score_thresh": 0.0, "save": ("csv", "voc"), "pre_labels": True}
    for name in ("one", "two"):
        infer(detector, source, tmp_path / name, **options)
    (tmp_path / "two/8.jpg").unlink()
    replace = os.replace

    def killed(*arguments) -> None:
        if moment == "draw_detections" or arguments[1] == tmp_path / "two" / moment:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    with monkeypatch.context() as patch:
        where = annotate if moment == "draw_detections" else os
        patch.setattr(where, "draw_detections" if where is annotate else "replace", killed)
        child = os.fork()
        if child == 0:
            infer(detector, source, tmp_path / "two", **options, resume=True)
    assert codes([child]) == [-9]
    infer(detector, source, tmp_path / "two", **options, resume=True)
    check_same(tmp_path / "two", tmp_path / "one")


def test_what_was_changed_since_is_refused_or_done_again(detector, inputs, tmp_path):
    source = Source(find_inputs([str(inputs)]).images, [])
    for name in ("one", "two"):
        infer(detector, source, tmp_path / name, score_thresh=0.0)
    output = tmp_path / "two"
    for picture in ("0.jpg", "5.jpg"):
        (output / picture).unlink()
    infer(detector, source, output, score_thresh=0.0, resume=True)
    check_same(output, tmp_path / "one")
    whole = (output / "results.json").read_bytes()
    changes = {"[]": "has not the objects that images.json counts, first of .*0.png", "[{": "JSON"}
    for content, words in changes.items():
        (output / "results.json").write_text(content)
        before = contents(output)
        with pytest.raises(UserError, match=words) as error:
            infer(detector, source, output, score_thresh=0.0, resume=True)
        assert str(error.value).startswith(str(output / "results.json"))
        assert contents(output) == before
    (output / "results.json").write_bytes(whole)
    (output / "images.json").unlink()
    with pytest.raises(UserError, match=r"images\.json, which tells .* is missing or damaged"):
        infer(detector, source, output, score_thresh=0.0, resume=True)


def test_evaluate_scores_the_same(weights, tmp_path):
    data = make_digits(tmp_path / "digits", train=1, val=3, image_size=128)
    # As many classes as the digits have.
    weights = save_untrained(tmp_path / "x.safetensors", 10)

    def score(output: str) -> dict:
        config = EvaluateConfig(
            weights=str(weights),
            data=DatasetConfig(root=str(data)),
            split="val",
            output=str(tmp_path / output),
            device="cpu",
        )
        return evaluate(config)

    def work(rank: int) -> None:
        (tmp_path / f"{rank}.json").write_text(json.dumps(score("two")))

    assert codes(in_two_processes(work)) == [0, 0]
    one, two = score("one"), json.loads((tmp_path / "1.json").read_text())
    assert two["coco"] == json.loads(json.dumps(one["coco"]))
    assert json.loads((tmp_path / "two/report.json").read_text()) | {"folder": two["folder"]} == two
    rows = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [row["image_id"] for row in rows[0]] == [row["image_id"] for row in rows[1]]


def test_resume_is_for_a_named_folder(weights, inputs, monkeypatch, capsys):
    for more in ([], ["--output", "x", "--overwrite"]):
        message = error_of(
            *(command, "--weights", str(weights), "--inputs", str(inputs), "--resume", *more),
            monkeypatch=monkeypatch,
            capsys=capsys,
        )
        assert "resume is for a named output, and without overwrite" in message
