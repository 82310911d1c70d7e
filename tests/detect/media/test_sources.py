"""What is meant by the inputs of inference, and what is taken from all over them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.common.errors import ImageError, UserError
from detect.media.sources import Source, find_inputs, read_images, spread, spread_images
from detect.media.video import slideshow


def grey(value: int) -> torch.Tensor:
    return torch.full((3, 32, 32), value, dtype=torch.uint8)


def test_what_a_folder_holds_besides_is_counted(tmp_path, caplog):
    for name in ("a.jpg", "b.JFIF", "c.avif", ".hidden.jpg", "._a.jpg", "d.HEIC", "e.mts", "f"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    found = find_inputs([str(tmp_path)])
    assert [path.name for path in found.images] == ["a.jpg", "b.JFIF", "c.avif"]
    (message,) = caplog.messages
    assert (
        "left out for their suffix: 3 (.HEIC, .mts, none); folders not looked into: 1 " in message
    )
    caplog.clear()
    assert len(find_inputs([f"{tmp_path}/*.*"]).images) == 3
    assert "left out for their suffix: 2 (.HEIC, .mts)" in caplog.text


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.mp4")
    (tmp_path / "c.png").symlink_to("c.png")
    found = find_inputs([str(tmp_path)])
    assert [path.name for path in found.images] == ["a.jpg", "c.png"]
    assert all(isinstance(image, ImageError) for _, image in read_images(found.images))
    assert [path.name for path in found.videos] == ["b.mp4"]
    assert list(spread_images(found, 4)) == []
    for path in tmp_path.iterdir():
        assert find_inputs([str(path)]) != Source([], [])
    with pytest.raises(UserError, match="unknown type of file"):
        find_inputs([__file__])


@pytest.mark.parametrize(
    ("length", "count", "places"), [(12, 3, [2, 6, 10]), (3, 5, [0, 1, 2]), (0, 5, []), (9, 0, [])]
)
def test_items_are_taken_from_the_whole_of_a_list(length, count, places):
    assert spread(range(length), count) == places


def test_images_are_taken_from_the_whole_of_the_inputs(tmp_path):
    """A video that begins black, and pictures in the order of their brightness."""
    slideshow(tmp_path / "v.mp4", [grey(0)] * 150 + [grey(200)] * 50, 25, (32, 32))
    for value in range(40):
        Image.fromarray(np.full((8, 8, 3), 6 * value, np.uint8)).save(tmp_path / f"{value:02}.png")
    found = find_inputs([str(tmp_path)])
    video = [float(frame.float().mean()) for frame in spread_images(Source([], found.videos), 32)]
    assert len(video) == 32
    assert sum(value > 150 for value in video) == 8
    both = [float(image.float().mean()) for image in spread_images(found, 16)]
    assert len(both) == 16
    assert both[:8] == [6.0 * value for value in range(2, 40, 5)]
    assert sum(value > 150 for value in both[8:]) == 2


def test_a_pattern_does_not_go_in_circles(tmp_path, monkeypatch):
    for name in ("a/b/1.png", "a/2.png", "3.png", ".hidden/4.png", "a/[x]/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("one", "two"):
        (tmp_path / "a/b" / name).symlink_to(tmp_path)
    everything = ["3.png", "a/2.png", "a/[x]/5.png", "a/b/1.png"]
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_inputs(["**/*.png"]).images] == everything
    assert [str(path) for path in find_inputs(["**"]).images] == everything
    assert [str(path) for path in find_inputs(["a/**/*.png"]).images] == everything[1:]
    absolute = find_inputs([f"{tmp_path}/**/b/*.png"]).images
    assert absolute == [tmp_path / "a/b/1.png"]
