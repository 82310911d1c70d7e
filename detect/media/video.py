"""Reading and writing video, with PyAV (FFmpeg's libraries in a wheel)."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO

import av
import numpy as np
import torch
from av import VideoFrame
from av.container import InputContainer
from av.stream import Disposition
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from backbones.common.errors import OutputError, UserError
from backbones.common.files import atomic_write, write_errors
from backbones.common.regular_files import open_file
from detect.media.addresses import TIMEOUT_SECONDS, Address
from detect.media.containers import missing_bytes

logger = logging.getLogger(__name__)

# A playlist that is named like a video would make FFmpeg open other files, and addresses.
_SAFE = {"protocol_whitelist": "file", "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf"}

# Of what a user named by its address; a playlist or redirection there opens no file either.
_STREAMS = {
    "protocol_whitelist": "http,https,httpproxy,rtsp,rtp,udp,tcp,tls",
    "format_whitelist": f"{_SAFE['format_whitelist']},mpjpeg,rtsp",
    "rtsp_transport": "tcp",
}

# Titles are in any encoding; PyAV reads every one by itself from 19 on.
_ANY_TITLE = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

_TICKS = 90_000
"""Of a second, in which the times of written frames are counted."""

# A fragment a second, the index of the first with it, so that it may say at which time it begins.
_FRAGMENTS = {
    "movflags": "frag_keyframe+delay_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}


class VideoReader:
    """Frames of a video file, stream or camera.

    Iterating yields `uint8` RGB tensors `[3, H, W]` and raises `UserError` where the file breaks
    off, after the last frame that could be decoded.

    Args:
        path: the file, or where frames come from.
        keyframes_only: pass over all frames but those that are stored whole.
        every: of so many frames the first is given.

    Attributes:
        fps: frames per second, on average.
        size: `(height, width)`.
        num_frames: about as many as the file or its duration says; 0 where neither does.

    Raises:
        UserError: missing, no regular file, no video, or of an unknown codec.
    """

    def __init__(
        self, path: str | Path | Address, *, keyframes_only: bool = False, every: int = 1
    ) -> None:
        self.path, self._every = path, every
        with _video_errors(f"{path}: cannot open video"):
            try:
                self._container = _open_input(path)
            except (av.InvalidDataError, av.ArgumentError) as error:
                what = f"{path}: cannot open video: of no known format, or damaged"
                if isinstance(path, Address):
                    what += "; of a playlist or a web page name the videos that are in it"
                raise UserError(f"{what} ({error.strerror})") from error
            covers = Disposition.attached_pic
            streams = [s for s in self._container.streams.video if not s.disposition & covers]
            if not streams or streams[0].codec_context is None:
                what = (
                    "no video stream (or it is cut off)"
                    if not streams
                    else "no codec for the video"
                )
                raise UserError(f"{path}: {what} in this file")
            self._stream = streams[0]
            if len(streams) > 1:
                sizes = [f"{stream.width}x{stream.height}" for stream in streams]
                _say_others(str(path), sizes[0], ", ".join(sizes[1:]))
            # One thread only would leave the other cores idle while the network waits for a frame.
            self._stream.thread_type = "AUTO"
            if keyframes_only:
                self._stream.codec_context.skip_frame = "NONKEY"
            self.fps = float(self._stream.average_rate or 25)
            lasts, stored = self._lasts(), self._stream.frames
            # A trimmed MP4 keeps frames that are not shown.
            self.num_frames = min(lasts, stored) if lasts and stored else lasts or stored
            # An MP4 counts its frames.
            is_mp4 = "mp4" in self._container.format.name
            self._stored = stored if is_mp4 and self.num_frames == stored else 0
            self._frames = self._container.decode(self._stream)
            self._first: VideoFrame | None = None
            self.size = (self._stream.height, self._stream.width)
        # A file that breaks off before the first frame says so when it is read.
        with suppress(Exception):
            self._first = next(self._frames, None)
        if self._first is not None:
            with _video_errors(f"{path}: cannot open video"):
                height, width, _ = _upright(self._first).shape
            self.size = (height, width)

    def _lasts(self) -> int:
        """Frames that the declared duration has room for; 0 where there is none."""
        if self._stream.duration and self._stream.time_base:
            return round(float(self._stream.duration * self._stream.time_base) * self.fps)
        return round((self._container.duration or 0) / av.time_base * self.fps)

    def __iter__(self) -> Iterator[Tensor]:
        return (frame for frame, _ in self.timed())

    def timed(self) -> Iterator[tuple[Tensor, float]]:
        """As iterating, each frame with its time in seconds, that of the first being 0."""
        read, damaged, start = 0, 0, 0.0
        first = () if self._first is None else (self._first,)
        try:
            with _video_errors(lambda: f"{self.path}: the video breaks off after {read} frames"):
                for frame in chain(first, self._frames):
                    if read == 0:
                        start = frame.time or 0.0
                    time = read / self.fps if frame.time is None else frame.time - start
                    damaged += bool(frame.is_corrupt)
                    read += 1
                    if (read - 1) % self._every == 0:
                        yield torch.from_numpy(_upright(frame)).permute(2, 0, 1), time
                missing = 0 if isinstance(self.path, Address) else missing_bytes(self.path)
        finally:
            self._container.close()
        early = f"{self.path}: the video ends early, after {read}"
        if missing:
            raise UserError(f"{early} frames: the file is cut off, {missing} bytes are missing")
        if read < self._stored:
            raise UserError(f"{early} of {self._stored} frames")
        if read == 0:
            raise UserError(f"{self.path}: the video has no frames")
        if damaged:
            raise UserError(f"{self.path}: {damaged} of {read} frames are damaged")


@functools.cache
def _say_others(path: str, taken: str, others: str) -> None:
    """Once for each file, though it is opened again for calibration."""
    logger.warning(
        "%s: has several video streams: the first, %s, is looked at, and not %s",
        *(path, taken, others),
    )


def _open_input(path: str | Path | Address) -> InputContainer:
    if isinstance(path, Address):
        name, kind, options = path.url, None, _STREAMS
        if path.is_camera:
            name, kind, options = f"/dev/video{path.url}", "v4l2", {}
        silent = (TIMEOUT_SECONDS, TIMEOUT_SECONDS)
        return av.open(name, format=kind, options=options, timeout=silent, **_ANY_TITLE)
    open_file(path).close()
    # Without `file:` a name like `http:a.mp4` is an address.
    return av.open(f"file:{path}", options=_SAFE, **_ANY_TITLE)


@contextmanager
def _video_errors(
    what: str | Callable[[], str], kind: type[UserError] = UserError
) -> Iterator[None]:
    """Whatever FFmpeg and its codecs raise is the file's fault, and becomes a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, av.ExitError):
            reason = f"nothing came for {TIMEOUT_SECONDS:g} seconds"
        raise kind(f"{what if isinstance(what, str) else what()}: {reason}") from error


def _upright(frame: VideoFrame) -> np.ndarray:
    """Pixels `uint8 [H, W, 3]`, turned as the file says: telephones store what they see lying."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class VideoWriter:
    """Writes an H.264 `.mp4` that browsers and players show; a context manager.

    The file is there from the first frame on and can be played at every moment, up to the last
    second or so: each second is a fragment of its own until the block ends, which then become one
    whole with an index for seeking. Without a frame there is no file.

    Args:
        path: file to write, replaced where it is there.
        fps: frames per second, on average.
        size: `(height, width)`; odd sizes lose their last row or column, as H.264 demands.

    Raises:
        DiskError: in what follows, the disk refuses it.
        OutputError: likewise, H.264 has no such size.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]) -> None:
        self.path = Path(path)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._size = tuple(size)
        self._last = -1
        self._file: IO[bytes] | None = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        # Never into what a link leads to; closed on leaving.
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115
        self._container = av.open(self._file, "w", format="mp4", options=_FRAGMENTS)
        self._stream = self._container.add_stream("libx264", self._rate)
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in self._size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        height, width = self._size
        what = f"{self.path}: cannot write a video of {width}x{height} pixels"
        with _video_errors(what, OutputError), write_errors(self.path):
            yield

    def write(self, frame: Tensor, time: float) -> None:
        """Append a `uint8` RGB frame `[3, H, W]` of the declared size, to be shown at `time`.

        In seconds; one that is not later than the last is shown right after it.
        """
        self.check_size(frame)
        with self._errors():
            if self._file is None:
                self._open()
            height, width = self._stream.height, self._stream.width
            pixels = frame[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
            video_frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            self._last = max(round(time * _TICKS), self._last + 1)
            video_frame.pts, video_frame.time_base = self._last, Fraction(1, _TICKS)
            for packet in self._stream.encode(video_frame):
                self._container.mux(packet)

    def check_size(self, frame: Tensor) -> None:
        """Raise `UserError` where a frame has another size, as after a cut to another video."""
        got = tuple(frame.shape[1:])
        if got != self._size:
            raise UserError(f"{self.path}: frame is {list(got)}, the video {list(self._size)}")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is None:
            return
        try:
            with self._errors():
                if self._stream.codec_context.is_open:  # PyAV 19 crashes on one that refused a size
                    for packet in self._stream.encode():
                        self._container.mux(packet)
                self._container.close()
                if self._file.tell():
                    _join_fragments(self.path)
        except UserError:
            if kind is None:  # otherwise what ended the block is what there is to say
                raise
        finally:
            empty = not self._file.tell()
            self._file.close()
            if empty:
                self.path.unlink(missing_ok=True)


def _join_fragments(path: Path) -> None:
    """Copy the packets of a fragmented MP4 into a plain one, which replaces it."""
    with (
        av.open(f"file:{path}", options=_SAFE) as source,
        atomic_write(path) as file,
        av.open(file, "w", format="mp4") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:  # the last one has nothing in it
                packet.stream = stream
                target.mux(packet)


def slideshow(path: str | Path, images: Iterable[Tensor], fps: float, size: tuple[int, int]) -> int:
    """Write pictures `uint8 [3, H_i, W_i]` one after another; the number of frames.

    Pictures are resized to fit `(height, width)`, on black.
    """
    count = 0
    with VideoWriter(path, fps, size) as writer:
        for image in images:
            factor = min(size[0] / image.shape[1], size[1] / image.shape[2])
            fitted = [max(1, int(side * factor)) for side in image.shape[1:]]
            frame = torch.zeros(3, *size, dtype=torch.uint8)
            frame[:, : fitted[0], : fitted[1]] = resize(image, fitted, antialias=True)
            writer.write(frame, count / fps)
            count += 1
    return count
