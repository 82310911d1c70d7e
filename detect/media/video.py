"""Reading and writing video, with PyAV (FFmpeg's libraries in a wheel)."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch
from av import VideoFrame
from av.error import FFmpegError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from backbones.common.errors import UserError

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})


class VideoReader:
    """Frames of a video file.

    Iterating yields `uint8` RGB tensors `[3, H, W]` and raises `UserError` where the file breaks
    off, after the last frame that could be decoded.

    Attributes:
        fps: frames per second, on average.
        size: `(height, width)`.
        num_frames: as the file declares it, or as its duration says; 0 where it says neither.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._container = av.open(str(path))
        except (FFmpegError, OSError) as error:
            raise UserError(f"{path}: cannot open video: {_reason(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"{path}: no video stream in this file")
        self._stream = self._container.streams.video[0]
        # One thread only would leave the other cores idle while the network waits for a frame.
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate or 25)
        self.num_frames = self._stream.frames
        self._tolerance = 0
        lasts = self._lasts()
        if lasts and (self.num_frames == 0 or lasts < self.num_frames):
            # Matroska and WebM declare a duration only, and a trimmed MP4 keeps frames that are not
            # shown; a duration holds for a steady frame rate.
            self.num_frames = lasts
            self._tolerance = 1 + lasts // 20
        self._frames = self._container.decode(self._stream)
        self._first: VideoFrame | None = None
        self.size = (self._stream.height, self._stream.width)
        # A file that breaks off before the first frame says so when it is read.
        with suppress(FFmpegError):
            self._first = next(self._frames, None)
        if self._first is not None:
            height, width, _ = _upright(self._first).shape
            self.size = (height, width)

    def _lasts(self) -> int:
        """Frames that the declared duration has room for; 0 where there is none."""
        if self._stream.duration and self._stream.time_base:
            return round(float(self._stream.duration * self._stream.time_base) * self.fps)
        return round((self._container.duration or 0) / av.time_base * self.fps)

    def __iter__(self) -> Iterator[Tensor]:
        read = 0
        first = () if self._first is None else (self._first,)
        try:
            for frame in chain(first, self._frames):
                pixels = _upright(frame)
                read += 1
                yield torch.from_numpy(pixels).permute(2, 0, 1)
        except FFmpegError as error:
            raise UserError(
                f"{self.path}: the video breaks off after {read} frames: {_reason(error)}"
            ) from error
        finally:
            self._container.close()
        if read < self.num_frames - self._tolerance:
            raise UserError(
                f"{self.path}: the video ends early, after {read} of {self.num_frames} frames"
            )
        if read == 0:
            raise UserError(f"{self.path}: the video has no frames")


def _upright(frame: VideoFrame) -> np.ndarray:
    """Pixels `uint8 [H, W, 3]`, turned as the file says: telephones store what they see lying."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


class VideoWriter:
    """Writes an H.264 `.mp4` that browsers and players show; a context manager.

    The file gets its name when the block ends without an exception; without a frame there is none.

    Args:
        path: file to write.
        fps: frames per second.
        size: `(height, width)`; odd sizes lose their last row or column, as H.264 demands.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(f".{self.path.stem}.partial{self.path.suffix}")
        self._container = av.open(str(self._partial), "w", format="mp4")
        self._stream = self._container.add_stream("libx264", Fraction(fps).limit_denominator(1001))
        self._size = tuple(size)
        self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    def write(self, frame: Tensor) -> None:
        """Append a `uint8` RGB frame `[3, H, W]` of the declared size."""
        self.check_size(frame)
        height, width = self._stream.height, self._stream.width
        pixels = frame[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
        video_frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
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
        if kind is None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
        # A file to which no frame was written was never made.
        if kind is None and self._partial.exists():
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)


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
            writer.write(frame)
            count += 1
    return count


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
