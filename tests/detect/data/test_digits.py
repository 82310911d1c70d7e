import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.ops import box_iou

from backbones.common.errors import UserError
from detect.data import DetectionDataset, digits, load_coco, make_digits
from detect.data.digit_scenes import VISIBLE_ALPHA, draw_scene

TRAIN, VAL = 14, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", seed=3, train=TRAIN, val=VAL)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def annotations(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def load(folder: Path, split: str) -> DetectionDataset:
    return load_coco(folder / "annotations" / f"{split}.json", folder / split)


def test_layout_and_promises(folder: Path) -> None:
    for split, count in (("train", TRAIN), ("val", VAL)):
        dataset = load(folder, split)
        assert len(dataset) == count == len(list((folder / split).glob("*.jpg")))
        assert dataset.class_names == list("0123456789")
        for index, sample in enumerate(dataset):
            assert dataset.load_image(index).shape == (3, 256, 256)
            assert 3 <= len(sample.boxes) <= 10
            heights = sample.boxes[:, 3] - sample.boxes[:, 1]
            assert 10 <= heights.min() <= heights.max() <= 60
            ious = box_iou(sample.boxes, sample.boxes) - torch.eye(len(sample.boxes))
            assert ious.max() == 0
    assert not set(load(folder, "train").image_ids) & set(load(folder, "val").image_ids)


def test_labels_are_the_digits_of_the_scans(folder: Path) -> None:
    target = load_digits().target
    for split in ("train", "val"):
        for entry in annotations(folder, split)["annotations"]:
            assert entry["category_id"] == target[entry["scan"]] + 1


def test_splits_share_neither_scans_nor_photographs(folder: Path) -> None:
    train, val = (annotations(folder, split) for split in ("train", "val"))
    for key, field in (("annotations", "scan"), ("images", "photograph")):
        assert not {e[field] for e in train[key]} & {e[field] for e in val[key]}
    assert not set(digits.PHOTOGRAPHS["train"]) & set(digits.PHOTOGRAPHS["val"])


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = make_digits(tmp_path / "again", seed=3, train=TRAIN, val=VAL)
    assert contents(again) == contents(folder)
    other = make_digits(tmp_path / "other", seed=4, train=2, val=1)
    assert contents(other)["train/000001.jpg"] != contents(folder)["train/000001.jpg"]


@pytest.mark.parametrize("seed", range(30))
def test_boxes_are_tight_on_visible_ink(seed: int) -> None:
    """On flat paper, what differs from the paper is ink."""
    paper = np.full((300, 300, 3), 70, np.uint8)
    scans = load_digits().images
    scene = draw_scene(paper, scans, np.arange(len(scans)), 200, np.random.default_rng(seed))
    # The paper's own level changes with the light; the commonest value is it.
    grey = scene.image.astype(int).sum(axis=2)
    ink = np.abs(grey - np.bincount(grey.ravel()).argmax()) / 3
    outside = np.ones_like(ink, dtype=bool)
    for x1, y1, x2, y2 in scene.boxes:
        inside = ink[y1:y2, x1:x2]
        outside[y1:y2, x1:x2] = False
        # Each of the four edges has ink that can be seen.
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.max() > VISIBLE_ALPHA * inside.max() - 1
        assert inside.max() > 60
    assert ink[outside].max() == 0


def test_existing_dataset_is_reused(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_digits(folder, seed=3, train=TRAIN, val=VAL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_other_settings_are_refused(folder: Path) -> None:
    settings = {"version": digits.VERSION, "seed": 3, "train": TRAIN, "val": VAL, "image_size": 256}
    for change in ({"seed": 4}, {"train": 15}, {"val": 7}, {"image_size": 200}):
        wanted = settings | change
        with pytest.raises(UserError) as error:
            make_digits(folder, **{key: wanted[key] for key in wanted if key != "version"})
        assert str(error.value) == (
            f"{folder}: holds digits made with {settings}, wanted {wanted}: "
            "delete the folder or name another"
        )


def test_other_contents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError) as error:
        make_digits(tmp_path, train=1, val=1)
    assert str(error.value) == (
        f"{tmp_path}: the folder is not empty and holds no digits dataset: name another"
    )
    with pytest.raises(UserError) as error:
        make_digits(tmp_path / "mine.txt", train=1, val=1)
    assert str(error.value) == (
        f"{tmp_path / 'mine.txt'}: expected a folder for the digits dataset, this is a file"
    )
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    with pytest.raises(UserError) as error:
        make_digits(tmp_path / "new", train=0)
    assert str(error.value) == (
        "digits: expected seed >= 0, train >= 1, val >= 1 and image_size >= 128, got "
        "seed=0, train=0, val=100, image_size=256"
    )


def test_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return draw_scene(*args)

    monkeypatch.setattr(digits, "draw_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits", train=4, val=1)
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    make_digits(tmp_path, train=1, val=1, image_size=128)
    assert load(tmp_path, "val").load_image(0).shape == (3, 128, 128)


def test_processes_may_race(tmp_path: Path) -> None:
    # Forked from here, where torch has used its threads, a child would wait for them for ever; what
    # they are forked from has imported what they need, and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detect.data.digits"])
    arguments = (tmp_path / "digits", 0, 6, 2)
    processes = [context.Process(target=make_digits, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
