"""What `infer` leaves in its folder: whole at every moment, its own, and of one run."""

import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from backbones.common.errors import UserError
from backbones.common.files import atomic_write, remove_unfinished, write_errors
from backbones.common.read_json import read_json

logger = logging.getLogger(__name__)

_LISTS = ("results.json", "images.json")


def clear_earlier(output: Path, targets: Collection[Path]) -> None:
    """Delete what an earlier run left in a folder, which would pass for this one's.

    That is what its `images.json` lists. To be called with the folder locked.

    Args:
        output: the folder.
        targets: files that this run may write there.

    Raises:
        UserError: `infer` did not write one of the files that it would replace.
    """
    earlier = _earlier(output / "images.json")
    for path in (*(output / name for name in _LISTS), *targets):
        if os.path.lexists(path) and path.name not in earlier:
            raise UserError(
                f"{path}: is there already, and infer did not write it: delete it, or choose "
                "another output"
            )
    old = [output / name for name in sorted(earlier)]
    old = [path for path in old if path.is_file() and not path.is_symlink()]
    if old:
        logger.info("%s: files of an earlier run that are removed: %d", output, len(old))
    for path in old:
        with write_errors(path):
            path.unlink()
    remove_unfinished(output, {*earlier, *(path.name for path in targets)})


def _earlier(path: Path) -> set[str]:
    """Names of the files of an earlier run; none where `path` is not as `infer` writes it."""
    try:
        images = read_json(path)["images"]
        names = {image["annotated"] for image in images}
        names |= {image["geojson"] for image in images if "geojson" in image}
    except (UserError, KeyError, TypeError):
        return set()
    is_own = all(
        isinstance(name, str)
        and name == Path(name).name
        and name.endswith((".jpg", ".mp4", ".geojson"))
        for name in names
    )
    return {*names, *_LISTS} if is_own else set()


class GrowingList:
    """A JSON list between `head` and `tail`, which is whole on the disk after each addition.

    So a process may be killed at any moment, and memory does not grow. A context manager.

    Args:
        path: the file; one that is there is replaced at once.
        head: JSON that ends with the list's bracket.
        tail: JSON that begins with it.

    Raises:
        UserError: the disk refuses it; what was added before is whole then.
    """

    def __init__(self, path: Path, head: str, tail: str) -> None:
        self._path, self._tail = path, tail.encode()
        self._end, self._separator = len(head.encode()), ""
        with atomic_write(path, "w") as file:
            file.write(head + tail)
        with write_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)

    def __enter__(self) -> "GrowingList":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append entries, all of them or none."""
        text = ", ".join(json.dumps(entry, allow_nan=False) for entry in entries)
        if not text:
            return
        data = (self._separator + text).encode()
        try:
            with write_errors(self._path):
                self._write(data + self._tail)
        except UserError:
            # There is room for what was there before.
            self._write(self._tail)
            os.truncate(self._file, self._end + len(self._tail))
            raise
        self._end += len(data)
        self._separator = ", "

    def _write(self, data: bytes) -> None:
        done = 0
        while done < len(data):  # the second time the disk says what it has against it
            done += os.pwrite(self._file, data[done:], self._end + done)
