"""The one place that writes files: whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO

from backbones.common.errors import UserError

_SETTING_UMASK = Lock()

UNFINISHED = ".tmp"
"""Suffix of a file that `atomic_write` is writing, or was when its process was killed."""


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder to write into, where it is missing, and see that files can be made in it.

    To be called before the work whose results go there.

    Raises:
        UserError: it cannot be made, is a file, or cannot be written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable."):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot write into this folder: {error.strerror}") from error
    return Path(path)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that replaces `path` when the block ends without an exception.

    A reader sees the old file or the whole new one, also when the process or the machine dies in
    between. The parent folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED
    )
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are as readable as any other file of the user.
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def umask() -> int:
    """What the process takes from the permissions of new files; can only be read by setting it."""
    with _SETTING_UMASK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes have left half written; none may be writing there now."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
