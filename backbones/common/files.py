"""The one place that writes files: whole or not at all."""

import fcntl
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

from backbones.common.errors import DiskError, UserError

logger = logging.getLogger(__name__)

_SETTING_UMASK = Lock()

_OF_FILES = (
    *(".avi", ".csv", ".html", ".jpeg", ".jpg", ".json", ".mkv", ".mov", ".mp4", ".onnx", ".png"),
    *(".safetensors", ".xml", ".yaml"),
)
"""Suffixes of what a user means to be a file."""

UNFINISHED = ".tmp"
"""Suffix of a file that `atomic_write` is writing, or was when its process was killed."""


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder to write into, where it is missing, and see that files can be made in it.

    To be called before the work whose results go there.

    Raises:
        UserError: it cannot be made, is a file or named like one, or cannot be written to.
    """
    path = Path(path)
    if not os.path.isdir(path) and (os.path.exists(path) or path.suffix.lower() in _OF_FILES):
        what = "it is" if os.path.exists(path) else "named like"
        raise UserError(
            f"{path}: cannot write into this folder: {what} a file: name another one, such as "
            f"{path.with_suffix('') if path.suffix else path.with_name('found')}"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable."):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot write into this folder: {error.strerror}") from error
    return path


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


@contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the disk refuses within the block is a `DiskError`."""
    try:
        yield
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs from a folder until the block ends, or this process does, however.

    Processes that this one starts have no part in it. Where the disk knows no locks, a warning says
    so.

    Raises:
        UserError: another process has the folder.
    """
    path = folder / ".lock"
    while True:
        file = open_to_append(path)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise UserError(
                f"{folder}: another program is writing into this folder: wait until it ends, or "
                "choose another folder"
            ) from error
        except OSError as error:
            logger.warning(
                "%s: cannot be locked, let no other program write there: %s", path, error
            )
        # The file may be one that its former owner has deleted in between.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                break
        file.close()
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def open_to_append(path: Path) -> IO[str]:
    """Open a text file that grows row by row; a link in its place is not followed. Raises
    `UserError` where it cannot be written to."""

    def open_file(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    with write_errors(path):
        # Names of files may hold bytes that are no text.
        return open(
            path, "a", encoding="utf-8", errors="backslashreplace", newline="", opener=open_file
        )


def set_aside(path: Path, reason: object, what: str = "damaged") -> None:
    """Rename what is damaged, or `what` its name then ends in, so that it is neither read nor lost,
    and warn of it; raises `UserError` where it cannot be renamed."""
    for number in itertools.count(1):
        kept = path.with_name(f"{path.name}.{what}" + (f"_{number}" if number > 1 else ""))
        if not os.path.lexists(kept):
            break
    with write_errors(path):
        path.rename(kept)
    logger.warning("%s, set aside as %s: %s", what, kept, reason)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    A reader sees the old file or the whole new one, also when the process or the machine dies in
    between. The parent folder is made where it is missing.

    Raises:
        DiskError: the disk refuses it; what was there stays.
    """
    path = Path(path)
    # Names of files may hold bytes that are no text.
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "backslashreplace")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:100]}.", suffix=UNFINISHED
        )
        try:
            with os.fdopen(handle, mode, encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files private; results are as readable as any other file of the user.
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = None) -> None:
    """A value as a JSON file, by `atomic_write`."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=indent)


def umask() -> int:
    """What the process takes from the permissions of new files; can only be read by setting it."""
    with _SETTING_UMASK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def remove_unfinished(folder: Path, names: Collection[str] | None = None) -> None:
    """Delete what killed processes have left half written, of the files with these names, or all;
    none may be writing there now."""
    begins = None if names is None else {name[:100] for name in names}
    for path in folder.glob(f".*{UNFINISHED}"):
        if begins is None or path.name[1:].rsplit(".", 2)[0] in begins:
            path.unlink(missing_ok=True)
