"""Videos as cameras and editors leave them, made by patching the boxes of an MP4."""

import os
import signal
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from backbones.common.errors import UserError
from detect.media.containers import missing_bytes
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
        writer.write(torch.zeros(3, 63, 64, dtype=torch.uint8), 0.0)
        for size in ((128, 128), (62, 64)):
            with pytest.raises(UserError, match=r"frame is \[.*\], the video \[63, 64\]"):
                writer.write(torch.zeros(3, *size, dtype=torch.uint8), 0.2)


def write_frames(path, milliseconds, **metadata) -> None:
    """Noise, a frame at each of these times."""
    noise = np.random.default_rng(0)
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    # With the index of an MP4 at its beginning, so that it can be opened when it is cut off.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        base = Fraction(1, 25 if path.suffix == ".avi" else 1000)
        stream.codec_context.time_base = base
        for time in milliseconds:
            pixels = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / 1000 / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


RECORDING = [*range(0, 1000, 40), *range(1000, 9000, 2000)]
DROPPED = [time for time in range(0, 2000, 40) if time % 7]


@pytest.mark.parametrize("times", [RECORDING, DROPPED])
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm"])
def test_frames_keep_their_own_times(times, suffix, tmp_path):
    """Where a screen recording shows little change, or a camera drops frames, nothing is lost."""
    path = tmp_path / f"a.{suffix}"
    if suffix == "webm":
        write_frames(tmp_path / "a.mkv", times)
        (tmp_path / "a.mkv").rename(path)
    else:
        write_frames(path, times)
    frames = list(VideoReader(path).timed())
    seconds = [(time - times[0]) / 1000 for time in times]
    assert [time for _, time in frames] == pytest.approx(seconds, abs=2e-3)
    with VideoWriter(tmp_path / "b.mp4", 25, (64, 64)) as writer:
        for frame, time in frames:
            writer.write(frame, time)
    written = [time for _, time in VideoReader(tmp_path / "b.mp4").timed()]
    assert written == pytest.approx(seconds, abs=2e-3)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mp4"])
def test_a_file_that_is_cut_off_is_called_so(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_frames(path, range(0, 2000, 40))
    data = path.read_bytes()
    assert len(list(VideoReader(path))) == 50
    assert missing_bytes(path) == 0
    for kept in (0.5, 0.9):
        path.write_bytes(data[: int(kept * len(data))])
        if suffix != "mp4":  # whose frames come last here, behind the list of them
            assert missing_bytes(path) > 0
        read = []
        with pytest.raises(UserError, match=r"(ends early,|breaks off) after \d+ frames: "):
            read.extend(VideoReader(path))
        assert 0 < len(read) < 50


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
@pytest.mark.parametrize("place", [0.4, 0.7])
def test_what_is_damaged_in_the_middle_is_said(suffix, place, tmp_path):
    """FFmpeg passes over it, and at times over all that follows."""
    path = tmp_path / f"a.{suffix}"
    write_frames(path, range(0, 4000, 40))
    data = bytearray(path.read_bytes())
    at, length = int(place * len(data)), len(data) // 50
    data[at : at + length] = bytes(length)
    path.write_bytes(data)
    read = []
    with pytest.raises(UserError, match=r"ends early, after|frames are damaged"):
        read.extend(VideoReader(path))
    assert len(read) >= 30


def write_streams(path, sides, *, is_cover_first=False) -> None:
    """Two frames in each of several streams; the first may be a cover, as music and films have."""
    with av.open(str(path), "w") as container:
        streams = []
        for number, side in enumerate(sides):
            is_cover = is_cover_first and number == 0
            stream = container.add_stream("mjpeg" if is_cover else "libx264", 5)
            stream.width, stream.height = side, 64
            stream.pix_fmt = "yuvj420p" if is_cover else "yuv420p"
            if is_cover:
                stream.disposition = Disposition.attached_pic
            streams.append(stream)
        for number in range(2):
            for stream in streams[number if is_cover_first else 0 :]:
                pixels = np.full((64, stream.width, 3), 100 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_which_of_several_streams_is_looked_at_is_said_once(suffix, tmp_path, caplog):
    path = tmp_path / f"two.{suffix}"
    write_streams(path, [96, 128, 160])
    for _ in range(2):
        assert [frame.shape[2] for frame in VideoReader(path)] == [96, 96]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{path}: has several video streams: the first, 96x64, is looked at")
    assert "not 128x64, 160x64" in said


def test_a_cover_is_no_video(tmp_path, caplog):
    path = tmp_path / "a.mp4"
    write_streams(path, [32, 96], is_cover_first=True)
    assert [frame.shape[2] for frame in VideoReader(path)] == [96, 96]
    assert not caplog.records


def test_a_title_in_another_encoding_is_no_fault(tmp_path):
    path = tmp_path / "a.avi"
    write_frames(path, range(0, 400, 40), title="ZXrich")
    data = path.read_bytes()
    assert data.count(b"ZXrich") == 1
    path.write_bytes(data.replace(b"ZXrich", b"Z\xfcrich"))
    assert len(list(VideoReader(path))) == 10


def test_whatever_is_wrong_with_a_video_is_one_error(video, tmp_path):
    (tmp_path / "http:a.mp4").write_bytes(video.read_bytes())
    assert len(list(VideoReader(tmp_path / "http:a.mp4"))) == FRAMES
    # A playlist of other files, which FFmpeg would read.
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    data = video.read_bytes()
    (tmp_path / "codec.mp4").write_bytes(data.replace(b"avc1", b"none").replace(b"avcC", b"none"))
    for name in ("list.mp4", "pipe.mp4", "codec.mp4", "nowhere.mp4", "a\0.mp4"):
        with pytest.raises(UserError, match=r"\.mp4: (cannot open video|no codec)"):
            list(VideoReader(tmp_path / name))


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_video_plays_to_where_its_writer_was_ended(is_killed, tmp_path):
    """By SIGKILL, less the last second or so; by an exception, all of it."""
    path, written = tmp_path / "v.mp4", 100
    child = os.fork()
    if child == 0:
        try:
            with VideoWriter(path, 10, (64, 64)) as writer:
                for number in range(written):
                    shade = torch.full((3, 64, 64), number * 2, dtype=torch.uint8)
                    writer.write(shade, number / 10)
                if is_killed:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]
    frames = list(VideoReader(path).timed())
    assert written - 40 < len(frames) <= written
    assert is_killed or len(frames) == written
    for number, (frame, time) in enumerate(frames):
        assert time == pytest.approx(number / 10, abs=2e-3)
        assert frame.float().mean() == pytest.approx(number * 2, abs=6)


def test_a_size_that_h264_has_not_is_one_error(tmp_path):
    frame = torch.zeros(3, 16, 17_000, dtype=torch.uint8)
    with (
        pytest.raises(UserError, match=r"v\.mp4: cannot write a video of 17000x16 pixels"),
        VideoWriter(tmp_path / "v.mp4", 5, (16, 17_000)) as writer,
    ):
        writer.write(frame, 0.0)
    assert not list(tmp_path.iterdir())
