"""What `infer` leaves in its folder: whole at every moment, its own, and of one run."""

import itertools
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, make_folder, remove_unfinished, write_errors
from backbones.common.read_json import read_json

logger = logging.getLogger(__name__)

_LISTS = ("results.json", "images.json")

CSV = "results.csv"

FOLDERS = ("crops", "voc", "yolo")
"""Below the output; what is in them is listed in `images.json` too."""


def numbered_folder(first: Path) -> Path:
    """Make a folder of this name, or with the first number from 2 behind it that is not taken.

    Two programs at once get two folders.

    Raises:
        UserError: it cannot be made.
    """
    make_folder(first.parent)
    numbered = (first.with_name(f"{first.name}{number}") for number in itertools.count(2))
    for folder in itertools.chain([first], numbered):
        with write_errors(folder), suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def clear_earlier(output: Path, targets: Collection[Path], *, overwrite: bool) -> None:
    """Delete what an earlier run left in a folder, which would pass for this one's.

    That is what its `images.json` lists. To be called with the folder locked.

    Args:
        output: the folder.
        targets: files that this run may write there, and folders that it writes into.
        overwrite: otherwise what an earlier run left is an error.

    Raises:
        UserError: `infer` did not write one of the files that it would replace, or wrote them and
            may not overwrite them; nothing is deleted then.
    """
    earlier = _earlier(output / "images.json")
    if earlier and not overwrite:
        raise UserError(
            f"{output}: has the results of an earlier run: choose another output, or --overwrite, "
            "which deletes what that run wrote"
        )
    for path in (*(output / name for name in _LISTS), *targets):
        for foreign in _foreign(path, output, earlier):
            raise UserError(
                f"{foreign}: is there already, and infer did not write it: delete it, or choose "
                "another output"
            )
    old = [output / name for name in sorted(earlier)]
    old = [path for path in old if os.path.isfile(path) and _is_inside(path, output)]
    if old:
        logger.info("%s: files of an earlier run that are removed: %d", output, len(old))
    # The list of what there is comes last, as this may be cut short too.
    for path in sorted(old, key=lambda path: path == output / "images.json"):
        with write_errors(path):
            path.unlink()
    remove_unfinished(output, {*earlier, *(path.name for path in targets)})
    by_folder = _by_folder(earlier)
    for folder in sorted(by_folder, key=lambda folder: -len(folder.parts)):
        if _is_inside(output / folder, output):
            remove_unfinished(output / folder, by_folder[folder])
            with suppress(OSError):  # where there are other things in it
                (output / folder).rmdir()


def _by_folder(names: Iterable[str]) -> dict[Path, set[str]]:
    """Names of files by their folder, and those folders that are above others."""
    found: dict[Path, set[str]] = {}
    for path in map(Path, names):
        for parent in path.parents[:-1]:
            found.setdefault(parent, set())
        if len(path.parts) > 1:
            found[path.parent].add(path.name)
    return found


def _is_inside(path: Path, output: Path) -> bool:
    """Whether no link leads from the output to this path of it."""
    return path.resolve() == output.resolve() / path.relative_to(output)


def _foreign(path: Path, output: Path, earlier: Collection[str]) -> Iterator[Path]:
    """What is at a path, or in the folder there, that an earlier run has not written."""
    if os.path.isdir(path) and not path.is_symlink():
        for place in sorted(path.iterdir()):
            if not place.name.startswith("."):  # half written, if not somebody's own
                yield from _foreign(place, output, earlier)
    elif os.path.lexists(path) and path.relative_to(output).as_posix() not in earlier:
        yield path


def _earlier(path: Path) -> set[str]:
    """Names of the files of an earlier run; none where `path` is not as `infer` writes it."""
    try:
        document = read_json(path)
        images, files = document["images"], list(document.get("files", ()))
        names = {image["annotated"] for image in images}
        names |= {image["geojson"] for image in images if "geojson" in image}
        for image in images:
            files += image.get("files", ())
        names |= set(files)
    except (UserError, AttributeError, KeyError, TypeError):
        return set()
    is_own = all(isinstance(name, str) and _is_own(name) for name in names)
    return {*names, *_LISTS} if is_own else set()


def _is_own(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if len(parts) > 1:
        return parts[0] in FOLDERS and ".." not in parts and name == str(PurePosixPath(name))
    return name == Path(name).name and (name == CSV or name.endswith((".jpg", ".mp4", ".geojson")))


class GrowingFile:
    """Text between `head` and `tail`, which is whole on the disk after each addition.

    So a process may be killed at any moment, and memory does not grow. A context manager.

    Args:
        path: the file; one that is there is replaced at once.
        head: what it begins with.
        tail: what it ends with.

    Raises:
        UserError: the disk refuses it; what was added before is whole then.
    """

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self._path, self._tail = path, tail.encode()
        self._end = len(head.encode())
        with atomic_write(path, "w") as file:
            file.write(head + tail)
        with write_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, text: str) -> None:
        """Put text before the tail, all of it or nothing."""
        data = text.encode()
        if not data:
            return
        try:
            with write_errors(self._path):
                self._write(data + self._tail)
        except UserError:
            # There is room for what was there before.
            self._write(self._tail)
            os.truncate(self._file, self._end + len(self._tail))
            raise
        self._end += len(data)

    def _write(self, data: bytes) -> None:
        done = 0
        while done < len(data):  # the second time the disk says what it has against it
            done += os.pwrite(self._file, data[done:], self._end + done)


class GrowingList(GrowingFile):
    """A JSON list: `head` ends with its bracket, `tail` begins with it."""

    _separator = ""

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append entries, all of them or none."""
        text = ", ".join(json.dumps(entry, allow_nan=False) for entry in entries)
        if text:
            self.append(self._separator + text)
            self._separator = ", "
