"""Where images for inference come from: files, folders, globs, videos, addresses, cameras."""

import codecs
import contextlib
import functools
import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from backbones.common.addresses import of_no_form
from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES, read_image
from backbones.common.listing import files_in, is_visible, visible_files, with_suffix
from detect.media.addresses import SCHEMES, Address, fetch_image
from detect.media.containers import VIDEO_SUFFIXES
from detect.media.video import VideoReader

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

Input = Path | Address
"""A file, or what is none."""


@dataclass(frozen=True)
class Source:
    """Inputs named on a command line, found but not yet read.

    Attributes:
        images: images, in order, each once.
        videos: videos, in order, each once.
    """

    images: Sequence[Input]
    videos: Sequence[Input]


def find_inputs(names: Iterable[str], *, recursive: bool = False) -> Source:
    """Expand files, folders (their images and videos, not deeper ones) and glob patterns.

    Also addresses, which are pictures where they end like one, else streams; a camera's number; and
    `-`, which stands for the names that come in on standard input, one a line. What folders and
    patterns hold beside these is counted in a warning.

    Args:
        names: of all these.
        recursive: look into the folders in folders too.

    Raises:
        UserError: a name matches nothing, or a file of unknown type was named outright.
    """
    given: list[Input] = []
    for name in names:
        if name == "-":
            if sys.stdin is None:
                raise UserError("inputs: -: standard input is closed")
            listed = sys.stdin.buffer.read().removeprefix(codecs.BOM_UTF8)
            lines = os.fsdecode(listed).replace("\r\n", "\n").split("\n")
            given += [path for line in lines if line for path in _expand(line, recursive)]
        else:
            given += _expand(name, recursive)
    found = _each_once(given)
    if not found and list(names) == ["-"]:
        raise UserError("inputs: -: standard input names none")
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    taken = set(images)
    return Source(images, [path for path in found if path not in taken])


def _each_once(given: Iterable[Input]) -> list[Input]:
    """Inputs by their first spelling; one warning counts the others. A link is a file by itself."""
    real = functools.cache(os.path.realpath)
    found: dict[Input, Input] = {}
    repeats = []
    for path in given:
        same = path if isinstance(path, Address) else Path(real(path.parent), path.name)
        if found.setdefault(same, path) is not path:
            repeats.append(path)
    if repeats:
        logger.warning("inputs left out as repeats: %d, first %s", len(repeats), repeats[0])
    return list(found.values())


def _expand(name: str, recursive: bool) -> Sequence[Input]:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    path = Path(name)
    scheme, separator, _ = name.partition("://")
    if separator and not os.path.exists(path):
        if scheme.lower() not in SCHEMES:
            shown = of_no_form(name)
            raise UserError(f"{shown}: expected an address of {', '.join(SCHEMES)}, or a file")
        try:
            has_host = bool(urlsplit(name).hostname) and urlsplit(name).port != 0
        except ValueError:
            has_host = False
        if not has_host:
            raise UserError(f"{of_no_form(name)}: expected an address as https://host/a.jpg")
        return [Address(name)]
    if name.isdecimal() and not os.path.exists(path):
        return [Address(name)]
    if os.path.isfile(path):
        if path.suffix.lower() not in known:
            raise UserError(
                f"{name}: unknown type of file, expected one of {' '.join(sorted(known))}"
            )
        return [path]
    if os.path.isdir(path):
        if recursive:
            inside = with_suffix(visible_files(path), known, name)
        else:
            inside = files_in(path, known, name)
        if not inside:
            raise UserError(f"{name}: no images or videos in this folder")
        return inside
    try:
        found = [Path(match) for match in sorted(_matches(name))]
    except OSError as error:
        raise UserError(f"{name}: cannot read this folder: {error.strerror}") from error
    matches = with_suffix([match for match in found if not os.path.isdir(match)], known, name)
    if not matches:
        raise UserError(f"{name}: no such file or folder, and no image or video matches it")
    return matches


def _matches(pattern: str) -> set[str]:
    """As `glob`, but `**` does not follow links, which may lead in circles."""
    if pattern.endswith("/**") or pattern == "**":
        pattern += "/*"
    head, stars, rest = pattern.partition("**/")
    if not stars or (head and not head.endswith("/")):
        return set(glob.glob(pattern))
    found = set()
    for top in glob.glob(head) if head else ["."]:
        for place, folders, _ in os.walk(top):
            folders[:] = filter(is_visible, folders)
            inside = "" if place == "." else glob.escape(place.removeprefix("./")) + "/"
            found |= _matches(inside.replace("//", "/") + rest)
    return found


def spread_images(source: Source, count: int) -> Iterator[Tensor]:
    """Some `count` images and frames, spread evenly over the whole of a source.

    Half of them are frames where there are pictures and videos. Those that cannot be read are
    passed over: what is broken is reported when the whole of it is read. None is of a stream, which
    need not end.
    """
    files = [path for path in source.videos if isinstance(path, Path)]
    pictures = spread(source.images, count // 2 if files else count)
    videos = spread(files, count - len(pictures))
    for _, image in read_images(pictures):
        if not isinstance(image, ImageError):
            yield image
    shares = np.array_split(range(count - len(pictures)), max(1, len(videos)))
    for path, share in zip(videos, shares, strict=False):
        yield from spread_frames(path, len(share))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, each from the middle of an equal share of them."""
    count = min(count, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def spread_frames(path: Path, count: int) -> list[Tensor]:
    """At most `count` frames from the whole of a video, `uint8` RGB `[3, H, W]`.

    Of the frames that are stored whole where these suffice, which reads hours in seconds.
    """
    kept: list[Tensor] = []
    for keyframes_only in (True, False):
        kept, step = [], 1
        with contextlib.suppress(UserError):
            for number, frame in enumerate(VideoReader(path, keyframes_only=keyframes_only)):
                if number % step == 0:
                    kept.append(frame)
                # However long it is, no more than two of each are in memory.
                if len(kept) == 2 * count:
                    kept, step = kept[::2], 2 * step
        if len(kept) >= count:
            break
    return spread(kept, count)


def read_images(paths: Iterable[Input]) -> Iterator[tuple[Input, Tensor | ImageError]]:
    """Each path with its `uint8` RGB `[3, H, W]` image, or with the error that reading it gave."""
    for path in paths:
        try:
            yield path, read_input(path)
        except ImageError as error:
            yield path, error


def read_input(path: Input) -> Tensor:
    """An image `uint8` RGB `[3, H, W]`; raises `ImageError`."""
    return fetch_image(path) if isinstance(path, Address) else read_image(path)
