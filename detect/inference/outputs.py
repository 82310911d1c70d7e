"""What `infer` leaves in its folder: whole at every moment, its own, and of one run."""

import hashlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, remove_unfinished, write_errors
from backbones.common.read_json import read_json
from detect.inference.corrections import DIGITS, check_unchanged, texts_of_lists
from detect.media.crops import LONGEST_NAME, printable
from detect.media.sources import Input, Source

logger = logging.getLogger(__name__)

IMAGES, RESULTS, CSV = "images.json", "results.json", "results.csv"

_LISTS = (RESULTS, IMAGES)

PARTS = "parts"
"""Folder of those lists that are joined at the end, see `detect.inference.parts`."""

FOLDERS = ("crops", "voc", "yolo", PARTS)
"""Below the output; what is in them is listed in `images.json` too."""


def annotated_files(source: Source, output: Path) -> dict[Input, Path]:
    """The file for each input, numbered where two inputs share a name, so that none is lost.

    Raises:
        UserError: it would be the input itself.
    """
    paths = [*source.images, *source.videos]
    inputs = {os.path.realpath(path) for path in paths if isinstance(path, Path)}
    videos = set(source.videos)
    targets: dict[Input, Path] = {}
    taken: set[str] = set()
    number = defaultdict[str, int](lambda: 1)
    for path in paths:
        suffix = ".mp4" if path in videos else ".jpg"
        stem = printable(os.fsencode(path.stem)[:LONGEST_NAME].decode("utf-8", "ignore"))
        stem = stem.lstrip(".") or "image"  # what a dot begins is hidden
        name = stem + suffix
        while name in taken:
            number[stem + suffix] += 1
            name = f"{stem}_{number[stem + suffix]}{suffix}"
        taken.add(name)
        target = output / name
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target}: the result would overwrite this input: change the output")
        targets[path] = target
    return targets


def check_earlier(output: Path, targets: Collection[Path], *, overwrite: bool) -> set[str]:
    """Names of the files that an earlier run left in a folder, as far as they may be replaced.

    They are what its `images.json` lists.

    Args:
        output: the folder.
        targets: files that this run may write there, and folders that it writes into.
        overwrite: otherwise what an earlier run left is an error.

    Raises:
        UserError: `infer` did not write one of the files that it would replace, or wrote them and
            may not overwrite them, or somebody has changed a text that it wrote.
    """
    earlier = check_foreign(output, targets)
    if earlier and not overwrite:
        raise UserError(
            f"{output}: has the results of an earlier run: choose another output, --resume, which "
            "goes on with it, or --overwrite, which deletes what that run wrote"
        )
    texts = list[dict[str, str]]()
    for path in (path for path in _lists(output) if _listed(path, Path())):
        document = read_json(path)
        texts += [entry.get("texts", {}) for entry in (document, *document["images"])]
        texts += [texts_of_lists(document)] if path == output / IMAGES else []
    check_unchanged(output, texts, "--overwrite would delete")
    return earlier


def clear_earlier(output: Path, targets: Collection[Path], *, overwrite: bool) -> None:
    """Delete what an earlier run left in a folder, which would pass for this one's.

    To be called with the folder locked. Raises as `check_earlier`; nothing is deleted then.
    """
    earlier = check_earlier(output, targets, overwrite=overwrite)
    if count := delete_listed(output, earlier, {path.name for path in targets}):
        logger.info("%s: files of an earlier run that were removed: %d", output, count)


def check_foreign(output: Path, targets: Collection[Path]) -> set[str]:
    """Names of the files of earlier runs; raises as `check_earlier` for what is none of them."""
    if (output / "config.yaml").exists() and (output / "checkpoints").exists():
        raise UserError(f"{output}: is the run folder of a training: choose another output")
    earlier = _earlier(output)
    for path in (*(output / name for name in _LISTS), *targets):
        for foreign in _foreign(path, output, earlier):
            tells = ""
            if path.name in _LISTS:
                tells = f" ({output / IMAGES}, which tells what infer wrote, is missing or damaged)"
            raise UserError(
                f"{foreign}: is there already, and infer did not write it: delete it, or choose "
                f"another output{tells}"
            )
    return earlier


def remove_parts(output: Path) -> None:
    """Delete the lists in `PARTS`, and that folder."""
    delete_listed(output, {name for name in _earlier(output) if Path(name).parts[0] == PARTS})


def delete_listed(output: Path, earlier: Collection[str], targets: Collection[str] = ()) -> int:
    """Delete files of an earlier run, and what it has left half written of them or of others.

    Returns how many files there were.
    """
    old = [output / name for name in sorted(earlier)]
    old = [path for path in old if os.path.isfile(path) and _is_inside(path, output)]
    # The lists of what there is come last, as this may be cut short too.
    for path in sorted(old, key=lambda path: path.name == IMAGES):
        with write_errors(path):
            path.unlink()
    remove_half_written(output, {*earlier, *targets})
    for folder in sorted(_by_folder(earlier), key=lambda folder: -len(folder.parts)):
        if _is_inside(output / folder, output):
            with suppress(OSError):  # where there are other things in it
                (output / folder).rmdir()
    return len(old)


def remove_half_written(output: Path, names: Collection[str]) -> None:
    """Delete what a killed run has left half written of files with these names."""
    remove_unfinished(output, names)
    for folder, inside in _by_folder(names).items():
        if _is_inside(output / folder, output):
            remove_unfinished(output / folder, inside)


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


def _earlier(output: Path) -> set[str]:
    """Names of the files of earlier runs; none of lists that are not as `infer` writes them."""
    return {
        name for path in _lists(output) for name in _listed(path, path.parent.relative_to(output))
    }


def _lists(output: Path) -> list[Path]:
    return [output / IMAGES, *output.glob(f"{PARTS}/*/{IMAGES}")]


def _listed(path: Path, folder: Path) -> set[str]:
    try:
        document = read_json(path)
        images, files = document["images"], list[str]()
        names = {image["annotated"] for image in images}
        names |= {image["geojson"] for image in images if "geojson" in image}
        for entry in (document, *images):
            files += [*entry.get("files", ()), *dict(entry.get("texts", {}))]
        files += texts_of_lists(document)
        names |= set(files)
        failed = set(document.get("failed", ()))
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return set()
    if not all(isinstance(name, str) and _is_own(name) for name in names | failed):
        return set()
    lists = (*_LISTS, *document.get("files", ()))
    # Those in parts become, or were, those of the output, of which this one may outlive the other.
    return names | {RESULTS} | {(folder / name).as_posix() for name in lists}


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
        self._end, self._written = len(head.encode()), hashlib.sha256(head.encode())
        with atomic_write(path, "w") as file:
            file.write(head + tail)
        with write_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def digest(self) -> str:
        """As `digest` of all but the tail."""
        return self._written.hexdigest()[:DIGITS]

    def append(self, text: str, tail: str | None = None) -> None:
        """Put text before the tail, or before another one no shorter than it; all or nothing."""
        data, new = text.encode(), self._tail if tail is None else tail.encode()
        if not data and new == self._tail:
            return
        try:
            with write_errors(self._path):
                self._write(data + new)
        except BaseException:  # a program's own signals too
            # There is room for what was there before.
            self._write(self._tail)
            os.truncate(self._file, self._end + len(self._tail))
            raise
        self._end += len(data)
        self._written.update(data)
        self._tail = new

    def _write(self, data: bytes) -> None:
        done = 0
        while done < len(data):  # the second time the disk says what it has against it
            done += os.pwrite(self._file, data[done:], self._end + done)


class GrowingList(GrowingFile):
    """A JSON list: `head` ends with its bracket, `tail` begins with it."""

    _separator = ""

    def add(self, entries: Iterable[Mapping[str, Any]], tail: str | None = None) -> None:
        """Append entries, all of them or none; `tail` as in `append`."""
        text = ", ".join(json.dumps(entry, allow_nan=False) for entry in entries)
        if text:
            self.append(self._separator + text, tail)
            self._separator = ", "
