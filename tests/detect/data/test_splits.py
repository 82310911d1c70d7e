"""The split that is made where there is none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backbones.common.config import to_dict
from backbones.common.errors import UserError
from detect.config import DataConfig
from detect.data.open import (
    DatasetConfig,
    build_dataset,
    build_datasets,
    dataset_for,
    keep_out_of_data,
)
from detect.data.splits import hold_out, scene_of, usual_split


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("cam1_0001.jpg", "cam1_"),
        ("DJI_0005-2.jpg", "DJI_0005-"),
        ("deep/2024-05-01 clip 3 frame 17.png", "2024-05-01 clip 3 frame "),
        ("IMG_0001.jpg", "IMG_0001"),
        ("000123.jpg", "000123"),
        ("cat.jpg", "cat"),
        # Of Roboflow, which makes several changed copies, and of Label Studio.
        ("IMG_0001_jpg.rf.0a1b2c3d4e5f.jpg", "IMG_0001"),
        ("cam1_0001_jpg.rf.0a1b2c3d4e5f.jpg", "cam1_"),
        ("1a2b3c4d-cam1_0001.jpg", "cam1_"),
    ],
)
def test_scenes_by_file_names(name, scene):
    assert scene_of(name) == scene


def test_usual_names_of_splits():
    names = ["train2017", "valid", "Validation", "instances_val2017", "test", "default", "trainval"]
    expected = ["train", "val", "val", "val", "test", "default", "train"]
    assert [usual_split(name) for name in names] == expected


FILES = st.sets(
    st.builds("cam{}_{:04}.jpg".format, st.integers(0, 30), st.integers(0, 5)), min_size=2
).map(sorted)


@given(FILES, st.floats(0.05, 0.9), st.integers(0, 3))
def test_scenes_stay_whole_and_both_sides_have_some(files, share, seed):
    held = hold_out(files, share, seed)
    assert np.array_equal(held, hold_out(files, share, seed))
    assert 0 < held.sum() < len(files)
    sides = {(scene_of(file), side) for file, side in zip(files, held.tolist(), strict=True)}
    scenes = {scene_of(file) for file in files}
    if len(scenes) > 1:
        assert len(sides) == len(scenes)


@given(FILES, FILES, st.integers(0, 3))
def test_added_files_move_no_other(files, added, seed):
    """From some scenes on: where one side would be empty, a scene has been moved there."""
    files = sorted({*files, *(f"cam{number}_1.jpg" for number in range(40))})
    before = dict(zip(files, hold_out(files, 0.2, seed).tolist(), strict=True))
    more = sorted({*files, *added})
    after = dict(zip(more, hold_out(more, 0.2, seed).tolist(), strict=True))
    assert {file: after[file] for file in files} == before


def test_the_share_is_about_what_was_asked_for():
    files = [f"IMG_{number}.jpg" for number in range(2000)]
    assert 0.17 < hold_out(files, 0.2, 0).mean() < 0.23
    assert (hold_out(files, 0.2, 0) != hold_out(files, 0.2, 1)).any()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("cup\n")
    for number in range(20):
        name = f"cam{number // 2}_{number}"
        Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.25 0.25\n" * (number % 3 != 0))
    return tmp_path


def test_val_share_and_split_seed_hold_images_out(flat, caplog):
    caplog.set_level("INFO")
    config = DatasetConfig(root=str(flat), val_share=0.3, split_seed=1)
    train, val = build_datasets(config, ["train", "val"])
    assert set(train.paths).isdisjoint(val.paths)
    assert len(train) + len(val) == 20
    said = [message for message in caplog.messages if "held out" in message]
    assert said == [
        f"{flat}: no split val: of 20 images {len(val)} are held out by seed 1 (10 scenes by their "
        "file names, each as a whole)"
    ]
    # Alone they are the same, and boxes stay with their images.
    assert build_dataset(config, "val").paths == val.paths
    for dataset in (train, val):
        for sample in dataset:
            number = int(Path(sample.path).stem.partition("_")[2])
            assert len(sample.labels) == (number % 3 != 0)
            assert sample.image_id == 1 + sorted(train.paths + val.paths).index(sample.path)
    others = [
        build_dataset(DatasetConfig(root=str(flat), val_share=share, split_seed=seed), "val").paths
        for share, seed in ((0.3, 2), (0.8, 1))
    ]
    assert val.paths not in others
    assert len(others[1]) > 10


def test_a_detector_is_scored_on_what_its_training_held_out(flat):
    """Also where the data are named again, as they are after they were moved."""
    named = DatasetConfig(root=str(flat))
    trained = DataConfig(root="elsewhere", val_share=0.3, split_seed=1)
    held_out = build_dataset(dataset_for(named, {"data": to_dict(trained)}), "val")
    assert held_out.paths == build_dataset(replace(named, val_share=0.3, split_seed=1), "val").paths
    own = replace(named, split_seed=5)
    assert dataset_for(own, {"data": to_dict(trained)}).split_seed == 5
    on_all = {"data": to_dict(DataConfig(root=str(flat), val=None))}
    with pytest.raises(UserError, match="no split val; there are: train"):
        build_dataset(dataset_for(named, on_all), "val")


def test_without_val_all_images_are_trained_on(flat):
    data = DataConfig(root=str(flat), val=None)
    assert len(build_dataset(data, data.train)) == 20
    with pytest.raises(UserError, match="no split val; there are: train"):
        build_dataset(DatasetConfig(root=str(flat), val_share=0), "val")


def test_what_names_a_dataset_does_not_decide_what_is_held_out(tmp_path):
    """Also of one scene, whose images are held out one by one."""
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds/data.yaml").write_text("train: images\nnames: [cup]\n")
    (tmp_path / "ds/images").mkdir()
    for number in range(20):
        Image.new("RGB", (40, 20)).save(tmp_path / f"ds/images/cam1_{number}.png")
    by_folder, by_file = (
        build_dataset(DatasetConfig(root=str(tmp_path / root)), "val").paths
        for root in ("ds", "ds/data.yaml")
    )
    assert by_folder == by_file
    assert 0 < len(by_file) < 10


def test_one_image_cannot_be_divided(tmp_path):
    (tmp_path / "classes.txt").write_text("cup\n")
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="one image cannot be divided"):
        build_dataset(DatasetConfig(root=str(tmp_path)), "train")


def test_an_output_is_not_among_the_data(flat):
    config = DatasetConfig(root=str(flat))
    with pytest.raises(UserError, match="is the folder of the dataset"):
        keep_out_of_data(str(flat / ".." / flat.name), config)
    # All images below it are taken.
    with pytest.raises(UserError, match=f"run: lies in {flat}, all of whose pictures are images"):
        keep_out_of_data(str(flat / "run"), config)
    keep_out_of_data(str(flat.parent / "run"), config)
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        (flat / folder).mkdir()
        for path in flat.glob(f"cam*.{suffix}"):
            path.rename(flat / folder / path.name)
    keep_out_of_data(str(flat / "run"), config)
