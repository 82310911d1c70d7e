"""The tools as a user meets them: training, inference, and mistakes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.repacking import repack
from helpers.tiny_detector import TINY
from helpers.tool_runs import error_of, not_logged, run
from helpers.untrained_detector import save_untrained

from backbones import create_backbone, save_backbone
from backbones.common.errors import UserError
from backbones.common.images import write_image
from backbones.networks.weights import load_weights, save_weights
from detect.checkpoint import load_detector
from detect.commands import infer, train_detector
from detect.data import load_coco, make_digits
from detect.inference.annotate import infer as infer_inputs
from detect.inference.outputs import annotated_files
from detect.inference.score import detect_dataset
from detect.media.sources import Source
from detect.media.video import VideoReader, slideshow
from tools import demo, make_video


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", train=4, val=2, image_size=128)


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> Path:
    """A detector of digits with random weights whose scores and proposals differ."""
    path = save_untrained(tmp_path_factory.mktemp("detector") / "best.safetensors", 10)
    state, metadata = load_weights(path)
    for name in ("cls_score.weight", "proposer.rpn.head.cls_logits.weight"):
        state[name] *= 30
    save_weights(path, state, metadata)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        image = torch.randint(0, 256, (3, 80, 100), dtype=torch.uint8)
        write_image(folder / f"{i}.jpg", image)
    return folder


def test_a_run_leaves_what_the_readme_says(digits, tmp_path, monkeypatch, capsys):
    """Trained for two steps, by the tool, in a process of its own."""
    config = tmp_path / "tiny.yaml"
    root = {"format": "coco", "root": str(digits), "train": "train", "val": "val", "test": "val"}
    config.write_text(yaml.safe_dump(TINY | {"data": root}))
    arguments = ["--config", str(config), "--run", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "tools.train_detector", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "val: AP " in done.stdout
    assert "test: AP " in done.stdout
    assert not_logged(tmp_path / "run", done.stdout, done.stderr) == []
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        "config.yaml",
        "log.txt",
        "curves.csv",
        "curves.png",
        "tensorboard",
        "checkpoints",
        "best.safetensors",
        "last.safetensors",
        "test.json",
        "test_results.json",
    }
    detector = load_detector(tmp_path / "run")
    assert detector.class_names == [str(digit) for digit in range(10)]
    assert detector.category_ids == list(range(1, 11))
    assert detector.metadata["input_size"] == 79

    # It is not overwritten by another.
    message = error_of(train_detector, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "already holds a run" in message


def test_infer_on_images_and_video(detector_file, pictures, tmp_path, monkeypatch, capsys):
    video = tmp_path / "clip.mp4"
    slideshow(video, [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 5, 5, (64, 64))
    inputs = [str(pictures), str(video)]
    arguments = ["--weights", str(detector_file), "--inputs", *inputs]
    arguments += ["--output", str(tmp_path / "out"), "--score_thresh", "0"]
    assert run(infer, *arguments, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"0.jpg", "1.jpg", "2.jpg", "clip.mp4", "images.json", "results.json"}
    assert len(list(VideoReader(tmp_path / "out" / "clip.mp4"))) == 5
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["id"] for image in images] == list(range(1, 9))
    assert [image.get("frame") for image in images] == [None] * 3 + list(range(5))
    annotated = [image["annotated"] for image in images]
    assert annotated == ["0.jpg", "1.jpg", "2.jpg", *["clip.mp4"] * 5]
    # A list, as pycocotools' loadRes wants it.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = Counter(result["category_id"] - 1 for result in results)
    classes = ", ".join(f"{digit} {counts[digit]}" for digit in sorted(counts))
    assert f"images and frames: 8, objects: {len(results)} ({classes}), written to" in printed
    assert results
    for result in results:
        assert set(result) == {"image_id", "category_id", "bbox", "score"}
        assert 1 <= result["image_id"] <= 8


def test_infer_with_other_settings_than_in_training(detector_file, pictures, tmp_path, monkeypatch):
    base = ["--weights", str(detector_file), "--inputs", str(pictures)]
    found = {}
    for name, settings in {
        "as trained": ["--score_thresh", "0"],
        "few": ["--score_thresh", "0", "--model.proposals_per_image", "2"],
        "none": ["--score_thresh", "1", "--model.rcnn.score_thresh", "1.0"],
    }.items():
        output = ["--output", str(tmp_path / name)]
        assert run(infer, *base, *output, *settings, monkeypatch=monkeypatch) == 0
        results = json.loads((tmp_path / name / "results.json").read_text())
        found[name] = Counter(result["image_id"] for result in results)
    # Each of at most two proposals is at most one object of each of ten classes.
    assert max(found["as trained"].values()) > 20 >= max(found["few"].values()) > 0
    assert not found["none"]
    contradiction = ["--score_thresh", "0.1", "--model.rcnn.score_thresh", "0.9"]
    output = ["--output", str(tmp_path / "neither")]
    assert run(infer, *base, *output, *contradiction, monkeypatch=monkeypatch) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["--model.proposals", "2"],
            ["model.proposals is no setting of use", "model.proposals_per_image, "],
        ),
        (["--model.rcnn.delta_std", "[1, 1, 1, 1]"], ["model.rcnn.delta_std is no setting of use"]),
        (["--model.rcnn.nms_thresh", "2"], ["rcnn.nms_thresh must be in [0, 1], got 2"]),
        (["--model.width", "0.5"], ["model.width is no setting of use"]),
        (["--model.rcnn.nms_thresh"], ["--model.rcnn.nms_thresh: expected a value after it"]),
        (["--model.rcnn.nms_tresh", "0.2"], ["did you mean model.rcnn.nms_thresh?"]),
        (["--calibration", "x.jpg"], ["calibration is for precision int8"]),
        (["--precision", "fp16"], ["precision", "int8"]),
    ],
)
def test_settings_that_cannot_be(
    detector_file, pictures, settings, words, tmp_path, monkeypatch, capsys
):
    base = ["--weights", str(detector_file), "--inputs", str(pictures)]
    base += ["--output", str(tmp_path)]
    message = error_of(infer, *base, *settings, monkeypatch=monkeypatch, capsys=capsys)
    for word in words:
        assert word in message


def test_int8_on_images_and_video(detector_file, pictures, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    video = tmp_path / "clip.mp4"
    slideshow(video, [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 3, 5, (64, 64))
    base = ["--weights", str(detector_file), "--inputs", str(pictures), str(video)]
    found = {}
    for precision in ("fp32", "int8"):
        output = ["--output", str(tmp_path / precision), "--score_thresh", "0"]
        assert run(infer, *base, *output, "--precision", precision, monkeypatch=monkeypatch) == 0
        results = json.loads((tmp_path / precision / "results.json").read_text())
        found[precision] = np.array([result["score"] for result in results])
        assert {result["image_id"] for result in results} == set(range(1, 7))
    exact, quantized = found.values()
    assert abs(np.sort(exact)[-20:] - np.sort(quantized)[-20:]).max() < 0.05
    assert not np.array_equal(exact, quantized)


@pytest.mark.parametrize("kind", ["jpg", "mp4"])
def test_infer_never_overwrites_an_input(detector_file, kind, tmp_path, monkeypatch, capsys):
    original = tmp_path / f"mine.{kind}"
    if kind == "jpg":
        write_image(original, torch.zeros(3, 64, 64, dtype=torch.uint8))
    else:
        slideshow(original, [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, 5, (64, 64))
    before = original.read_bytes()
    arguments = ["--weights", str(detector_file), "--inputs", str(original)]
    arguments += ["--output", str(tmp_path)]
    message = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert f"mine.{kind}: the result would overwrite this input" in message
    assert original.read_bytes() == before


def test_the_output_must_be_a_folder(detector_file, pictures, monkeypatch, capsys):
    arguments = ["--weights", str(detector_file), "--inputs", str(pictures)]
    arguments += ["--output", str(pictures / "0.jpg")]
    message = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "0.jpg: cannot write into this folder" in message


def test_infer_goes_on_after_a_broken_image(detector_file, pictures, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    data = (pictures / "0.jpg").read_bytes()
    (folder / "a_truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "b_no_image.png").write_text("hello")
    (folder / "c_good.jpg").write_bytes(data)
    arguments = ["--weights", str(detector_file), "--inputs", str(folder)]
    arguments += ["--output", str(tmp_path / "out")]
    message = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "inputs that could not be read: 2" in message
    assert (tmp_path / "out" / "c_good.jpg").exists()
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["c_good.jpg"]


def test_a_video_that_ends_early_keeps_its_frames(
    detector_file, tmp_path, monkeypatch, capsys, caplog
):
    whole = tmp_path / "whole.mkv"
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 96, 96), dtype=torch.uint8, generator=noise)
    video = tmp_path / "whole.mp4"
    slideshow(video, list(images), 10, (96, 96))
    # Matroska can be read to where it breaks off; an MP4 without its index cannot be opened.
    repack(video, whole)
    data = video.read_bytes()
    index = data.find(b"moov")
    assert index > 0
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: index // 2])
    arguments = ["--weights", str(detector_file), "--inputs", str(cut)]
    arguments += ["--output", str(tmp_path / "out")]
    message = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "inputs that could not be read: 1" in message
    assert "cut.mp4: cannot open video" in caplog.text
    data = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) // 2])
    arguments = ["--weights", str(detector_file), "--inputs", str(cut)]
    arguments += ["--output", str(tmp_path / "cut")]
    message = error_of(infer, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert "inputs that could not be read: 1" in message
    kept = list(VideoReader(tmp_path / "cut" / "cut.mp4"))
    assert 0 < len(kept) < 12
    assert f"cut.mkv: the video ends early, after {len(kept)} frames: the file is" in caplog.text
    images = json.loads((tmp_path / "cut" / "images.json").read_text())["images"]
    assert [image["frame"] for image in images] == list(range(len(kept)))


def test_results_are_numbered_where_their_names_meet(tmp_path):
    images = [tmp_path / name for name in ("phone.jpg", "phone.png", "phone_2.jpg", "x/phone.jpg")]
    videos = [tmp_path / name for name in ("phone.mp4", "phone.mkv")]
    targets = annotated_files(Source(images, videos), tmp_path / "out")
    assert [path.name for path in targets.values()] == [
        *("phone.jpg", "phone_2.jpg", "phone_2_2.jpg", "phone_3.jpg"),
        *("phone.mp4", "phone_2.mp4"),
    ]


def test_an_interrupted_inference_keeps_what_it_found(
    detector_file, pictures, tmp_path, monkeypatch, caplog
):
    paths = sorted(pictures.iterdir())

    drawn = []

    def interrupted(image, *rest):
        drawn.append(image)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr("detect.inference.annotate.draw_detections", interrupted)
    detector = load_detector(detector_file)
    with pytest.raises(KeyboardInterrupt):
        infer_inputs(detector, Source(paths, []), tmp_path, score_thresh=0.0)
    assert f"{tmp_path} keeps what was found so far, images: 1" in caplog.text
    results = json.loads((tmp_path / "results.json").read_text())
    images = json.loads((tmp_path / "images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == [str(paths[0])]
    assert [category["name"] for category in images["categories"]] == detector.class_names
    assert results
    assert {result["image_id"] for result in results} == {1}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("0.jpg", "images.json", "results.json"),
    ]


def test_an_unreadable_image_counts_as_without_detections(detector_file, tmp_path, caplog):
    folder = make_digits(tmp_path / "digits", train=1, val=2, image_size=128)
    dataset = load_coco(folder / "annotations" / "val.json", folder / "val")
    Path(dataset.sample(0).path).write_bytes(b"broken")
    detector = load_detector(detector_file)
    detections, regions, cost = detect_dataset(detector, dataset)
    assert [len(boxes) > 0 for boxes in regions] == [False, True]
    assert len(detections) == 2
    assert len(detections[0]["boxes"]) == 0
    assert "counted as without detections: " + dataset.sample(0).path in caplog.text
    # Nor does it cost anything.
    assert cost.crops_per_image == len(detector.propose([dataset.load_image(1)])[0].boxes)
    Path(dataset.sample(1).path).write_bytes(b"broken")
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        detect_dataset(detector, dataset)


def test_a_score_threshold_of_proposals_saves_crops(detector_file, tmp_path):
    folder = make_digits(tmp_path / "digits", train=1, val=2, image_size=128)
    dataset = load_coco(folder / "annotations" / "val.json", folder / "val")
    detector = load_detector(detector_file)
    scores = [detector.propose([dataset.load_image(index)])[0].scores for index in range(2)]
    assert detect_dataset(detector, dataset).cost.crops_per_image == sum(map(len, scores)) / 2
    threshold = float(torch.cat(scores).median())
    detector.model.proposer.score_thresh = threshold
    cost = detect_dataset(detector, dataset).cost
    # The proposer's comparison is on the logit's sigmoid as it is here, and strict or not for ties.
    above = [int((s > threshold).sum()) for s in scores]
    assert sum(above) / 2 <= cost.crops_per_image <= sum(above) / 2 + 0.5
    assert 0 < cost.seconds_per_image < 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"category_ids": [1, 2]}, "10 class names, 2 category ids"),
        ({"class_names": [], "category_ids": []}, "class_names must be a list of text"),
        (
            {"config": {"learned": {"anchors_per_image": 3}}},
            "learned.anchors_per_image",
        ),
        (
            {"config": {"learned": {"channels": 24}}},
            "do not fit the metadata: proposer.pyramid",
        ),
        ({"config": {"learned": {"channels": 10**9}}}, "broken metadata"),
        # What would ask for gigabytes or minutes, of a file of some kilobytes.
        (
            {
                "config": {
                    "learned": {"anchor_sizes": [[8] * 9000] * 3, "anchor_ratios": [1] * 9000}
                }
            },
            "at most 200 anchors at a place, got 81000000",
        ),
        ({"config": {"rcnn": {"crop_size": 10**6}}}, r"rcnn.crop_size must be in \[1, 2048\]"),
        ({"config": {"learned": {"tile_size": 10**6}}}, r"learned.tile_size must be in \[64, 8192"),
        ({"config": {"learned": {"anchor_ratios": [1] * 10**6}}}, "more than 100000 values"),
        ({"config": {"learned": {"nms_thresh": float("nan")}}}, "nms_thresh: expected a finite"),
        ({"input_size": 10**6}, "input_size must be at most 2048, got 1000000"),
        ({"class_names": [["a"]] * 10}, "class_names must be a list of text"),
        ({"category_ids": ["1"] * 10}, "category_ids must be a list of whole numbers"),
    ],
)
def test_broken_metadata_of_a_detector_names_the_file(change, words, detector_file, tmp_path):
    state, metadata = load_weights(detector_file)
    if "config" in change:
        change = {"config": {**metadata["config"], **change["config"]}}
    save_weights(tmp_path / "broken.safetensors", state, metadata | change)
    with pytest.raises(UserError, match=f"broken.safetensors: .*({words})"):
        load_detector(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--optim.momentun", "0.9"], ["optim.momentun"]),
        (["--epochs", "ten"], ["epochs", "int", "ten"]),
        (["--epochs", "0"], ["epochs", "at least 1"]),
        (["--model.variant", "inception_v9"], ["inception_v9"]),
        (["--data.format", "coco", "--data.root", "nowhere"], ["nowhere", "not found"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--model.width", "0.3", "--data.root", "no"], ["model.width must be one of", "got 0.3"]),
        (["--model.learned.width", "2", "--data.root", "no"], ["learned.width must be one of"]),
        (["--model.proposer", "precomputed"], ["model.precomputed"]),
        (["--model.grid.step", "0.3"], ["model.grid is set", "learned"]),
        (["--data.class_names", '["a"]'], ["data.class_names", "voc"]),
    ],
)
def test_training_mistakes_are_one_line(arguments, words, digits, tmp_path, monkeypatch, capsys):
    base = ["--run", str(tmp_path / "run")]
    data = {"--data.root": str(digits), "--data.format": "coco"}
    base += [word for key in data.keys() - {*arguments} for word in (key, data[key])]
    message = error_of(train_detector, *base, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    for word in words:
        assert word in message


def test_training_without_a_dataset_asks_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = error_of(train_detector, monkeypatch=monkeypatch, capsys=capsys)
    assert "name the dataset by --data PATH" in message
    assert "--config" in message
    assert not list(tmp_path.iterdir())


def test_inference_mistakes_are_one_line(detector_file, pictures, tmp_path, monkeypatch, capsys):
    weights = str(detector_file)
    other = tmp_path / "backbone.safetensors"
    save_backbone(other, create_backbone("inception_v3_79_naive", num_classes=3, width=0.25))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    for arguments, words in [
        ([weights, '["nowhere.jpg"]'], "nowhere.jpg: no such file"),
        ([weights, f'["{weights}"]'], "unknown type of file"),
        (
            [str(tmp_path / "none.safetensors"), f'["{pictures}"]'],
            "none.safetensors: no such file: expected weights or a run folder",
        ),
        (
            [str(pictures), f'["{pictures}"]'],
            "neither best.safetensors nor last.safetensors is in this run folder",
        ),
        ([str(broken), f'["{pictures}"]'], "broken.safetensors"),
        (
            [str(other), f'["{pictures}"]'],
            "of kind 'detector', found kind 'backbone'",
        ),
    ]:
        message = error_of(
            infer,
            *("--weights", arguments[0], "--inputs", arguments[1]),
            *("--output", str(tmp_path / "out")),
            monkeypatch=monkeypatch,
            capsys=capsys,
        )
        assert words in message


def test_a_checkpoint_of_another_architecture_names_the_tensor(detector_file, tmp_path):
    state, metadata = load_weights(detector_file)
    metadata["config"]["width"] = 0.5
    save_weights(tmp_path / "other.safetensors", state, metadata)
    with pytest.raises(
        ValueError,
        match=r"weights do not fit the metadata: backbone\.stem",
    ):
        load_detector(tmp_path / "other.safetensors")


def test_the_demo_never_takes_the_place_of_an_earlier_run(tmp_path, monkeypatch, capsys):
    run_folder = tmp_path / "demo"
    assert demo.free_folder(run_folder) == run_folder
    for number in (2, 3):
        run_folder.mkdir()
        run_folder = demo.free_folder(tmp_path / "demo")
        assert run_folder == tmp_path / f"demo_{number}"
    message = error_of(demo, "--nope", "1", monkeypatch=monkeypatch, capsys=capsys)
    assert "unrecognized arguments: --nope 1: --help-all lists all keys" in message


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--batch-size", "--batch_size"),
        ("--rcnn.crop_size", "--model.rcnn.crop_size"),
        ("--nms_thresh", "--model.learned.nms_thresh or --model.rcnn.nms_thresh"),
    ],
)
def test_options_near_the_mistyped_one_are_named(option, meant, monkeypatch, capsys):
    message = error_of(train_detector, option, "1", monkeypatch=monkeypatch, capsys=capsys)
    assert f"unrecognized arguments: {option} 1: did you mean {meant}? --help" in message


def test_make_video_of_pictures(pictures, tmp_path, monkeypatch, capsys):
    arguments = ["--inputs", str(pictures), "--output", str(tmp_path / "v.mp4"), "--most", "2"]
    assert run(make_video, *arguments, monkeypatch=monkeypatch) == 0
    for output, why in ((tmp_path, "this is a folder"), (tmp_path / "v.gif", "ends in .mp4")):
        wrong = ["--inputs", str(pictures), "--output", str(output)]
        message = error_of(make_video, *wrong, monkeypatch=monkeypatch, capsys=capsys)
        assert f"{output}: expected the name of a video, " in message
        assert why in message
    reader = VideoReader(tmp_path / "v.mp4")
    assert reader.size == (80, 100)
    assert len(list(reader)) == 2
