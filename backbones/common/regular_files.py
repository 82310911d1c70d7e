"""Reading what users and their data name: files alone, for a pipe or a device has no end."""

import errno
import os
import stat
from io import BufferedReader


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading, without waiting where it is a pipe.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says why.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL or half a character in the name
        raise OSError(errno.EINVAL, f"no name of a file: {error}", path) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    is_folder = stat.S_ISDIR(mode)
    what = "is a folder" if is_folder else "is a pipe or a device, no file"
    raise OSError(errno.EINVAL, what, path)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The whole of a file; raises as `open_file`."""
    with open_file(path) as file:
        return file.read()
