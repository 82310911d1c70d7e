"""Where images for inference come from: files, folders, globs, videos."""

import contextlib
import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES, read_image
from detect.media.video import VIDEO_SUFFIXES, VideoReader


@dataclass(frozen=True)
class Source:
    """Inputs named on a command line, found but not yet read.

    Attributes:
        images: image files, in order, each once.
        videos: video files, in order, each once.
    """

    images: list[Path]
    videos: list[Path]


def find_inputs(names: list[str]) -> Source:
    """Expand files, folders (their images and videos, not deeper ones) and glob patterns.

    Raises:
        UserError: a name matches nothing, or a file of unknown type was named outright.
    """
    found: dict[Path, None] = {}
    for name in names:
        for path in _expand(name):
            found[path] = None
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    return Source(images, videos)


def _expand(name: str) -> list[Path]:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    path = Path(name)
    if path.is_dir():
        inside = [entry for entry in sorted(path.iterdir()) if entry.suffix.lower() in known]
        if not inside:
            raise UserError(f"{name}: no images or videos in this folder")
        return inside
    if path.is_file():
        if path.suffix.lower() not in known:
            raise UserError(
                f"{name}: unknown type of file, expected one of {' '.join(sorted(known))}"
            )
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
    matches = [match for match in matches if match.suffix.lower() in known]
    if not matches:
        raise UserError(f"{name}: no such file or folder, and no image or video matches it")
    return matches


def first_images(source: Source) -> Iterator[Tensor]:
    """The images and frames of a source from its beginning, without those that cannot be read."""
    for _, image in read_images(source.images):
        if not isinstance(image, ImageError):
            yield image
    for path in source.videos:
        # What is broken is reported when the whole of it is read.
        with contextlib.suppress(UserError):
            yield from VideoReader(path)


def read_images(paths: list[Path]) -> Iterator[tuple[Path, Tensor | ImageError]]:
    """Each path with its `uint8` RGB `[3, H, W]` image, or with the error that reading it gave."""
    for path in paths:
        try:
            yield path, read_image(path)
        except ImageError as error:
            yield path, error
