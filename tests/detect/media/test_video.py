"""Videos as cameras and editors leave them, made by patching the boxes of an MP4."""

import struct

import pytest
import torch

from backbones.common.errors import UserError
from detect.media.video import VideoReader, VideoWriter, slideshow

FRAMES, FPS = 12, 6


@pytest.fixture
def video(tmp_path):
    """64×96 pixels, black but for the top left corner; from frame 6 on that is darker."""
    frames = torch.zeros(FRAMES, 3, 64, 96, dtype=torch.uint8)
    frames[:, :, :24, :24] = 250
    frames[FRAMES // 2 :, :, :24, :24] = 120
    path = tmp_path / "video.mp4"
    slideshow(path, list(frames), FPS, (64, 96))
    return path


def patch(path, box: bytes, offset: int, values: list[int]) -> None:
    """Write 32-bit numbers into the only box of a name, so many bytes after the name."""
    data = bytearray(path.read_bytes())
    assert data.count(box) == 1
    at = data.find(box) + len(box) + offset
    data[at : at + 4 * len(values)] = struct.pack(f">{len(values)}i", *values)
    path.write_bytes(data)


def numbers(path, box: bytes, offset: int, count: int = 1) -> tuple[int, ...]:
    data = path.read_bytes()
    return struct.unpack_from(f">{count}i", data, data.find(box) + len(box) + offset)


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),
    [
        ((1, 0, 0, 1), (64, 96), (0, 0)),
        ((0, 1, -1, 0), (96, 64), (0, -1)),  # a quarter to the right
        ((-1, 0, 0, -1), (64, 96), (-1, -1)),
        ((0, -1, 1, 0), (96, 64), (-1, 0)),
    ],
)
def test_frames_are_turned_as_the_file_says(video, matrix, size, corner):
    one = 1 << 16
    a, b, c, d = (one * value for value in matrix)
    patch(video, b"tkhd", 40, [a, b, 0, c, d, 0, 0, 0, 1 << 30])
    reader = VideoReader(video)
    assert reader.size == size
    frames = list(reader)
    assert len(frames) == FRAMES
    for frame in frames:
        assert tuple(frame.shape[1:]) == size
        places = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
        bright = [place for place in places if frame[:, place[0], place[1]].float().mean() > 60]
        assert bright == [corner]


def test_a_trimmed_video_is_whole(video):
    """An edit list that begins in the middle; the frames before it are stored and not shown."""
    (movie_scale,), (media_scale,) = numbers(video, b"mvhd", 12), numbers(video, b"mdhd", 12)
    duration, start = numbers(video, b"elst", 8, 2)
    half = FRAMES // 2
    shift = [duration - half * movie_scale // FPS, start + half * media_scale // FPS]
    patch(video, b"elst", 8, shift)
    frames = list(VideoReader(video))
    assert len(frames) == half
    assert all(100 < frame[0, 5, 5] < 140 for frame in frames)


def test_a_damaged_video_breaks_off_after_the_frames_before_the_damage(tmp_path):
    noise = torch.Generator().manual_seed(0)
    path = tmp_path / "v.mp4"
    shape = (FRAMES, 3, 96, 96)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)
    slideshow(path, list(frames), FPS, (96, 96))
    data = bytearray(path.read_bytes())
    first, last = len(data) // 2, data.find(b"moov") - 4
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    read = []
    with pytest.raises(
        UserError, match=r"v\.mp4: the video breaks off after \d+ frames: "
    ) as error:
        read.extend(VideoReader(path))
    assert 0 < len(read) < FRAMES
    assert f"after {len(read)} frames" in str(error.value)


def test_frames_have_the_size_of_their_video(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", 5, (63, 64)) as writer:
        writer.write(torch.zeros(3, 63, 64, dtype=torch.uint8))
        for size in ((128, 128), (62, 64)):
            with pytest.raises(UserError, match=r"frame is \[.*\], the video \[63, 64\]"):
                writer.write(torch.zeros(3, *size, dtype=torch.uint8))
