"""Members of tar files that may be damaged, or made to harm: in constant time and memory each."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Generic, TypeVar

from backbones.common.errors import UserError

MAX_LABEL = 999_999
MAX_IMAGE_BYTES = 1 << 28
"""Of one image; it is read into memory whole."""
LABEL_BYTES = 32
"""That are read of a `.cls` member."""

Image = TypeVar("Image")

_MAX_BYTES = 1 << 50
"""Of a member; there are no larger files."""
_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_EXTENSION_BYTES = 1 << 15
_MAX_EXTENSIONS = 8
"""In front of one member, each of which is a recursion of `tarfile`; four can have a meaning."""


def open_tar(stream: IO[bytes], mode: str) -> tarfile.TarFile:
    """As `tarfile.open`, of a tar file that `members` is to go through."""

    class Header(tarfile.TarInfo):
        extensions = 0  # one after the other, in this file

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
            info = super().frombuf(buf, encoding, errors)
            cls.extensions = cls.extensions + 1 if info.type in _EXTENSIONS else 0
            if cls.extensions > _MAX_EXTENSIONS:
                raise tarfile.ReadError("headers upon headers")
            most = _MAX_EXTENSION_BYTES if cls.extensions else _MAX_BYTES
            if not 0 <= info.size <= most:
                raise tarfile.ReadError(f"a header claims {info.size} bytes")
            if info.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.ReadError("sparse members are not read")
            return info

    with _read_errors():
        return tarfile.open(fileobj=stream, mode=mode, tarinfo=Header)  # type: ignore[call-overload]


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of what `open_tar` has opened, in their order; raises `tarfile.ReadError`
    where it is damaged from there on."""
    while True:
        with _read_errors():
            info = tar.next()
        if info is None:
            return
        # As an extended header can have it.
        if not 0 <= info.size <= _MAX_BYTES or info.issparse():
            raise tarfile.ReadError(f"a member claims {info.size} bytes")
        # They would pile up; what comes next is known by its place in the file.
        tar.members.clear()  # type: ignore[attr-defined]
        if info.isfile():
            yield info


class Pairs(Generic[Image]):
    """Images and labels of the same name, in the order in which both are there.

    A name may come again once its pair is whole; before that the first image or label stays.
    """

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.labels: dict[str, int] = {}
        self._repeated = 0

    def add_image(self, key: str, image: Image) -> None:
        """An image that waits for its label from now on."""
        self._repeated += key in self.images
        self.images.setdefault(key, image)

    def add_label(self, key: str, label: int) -> None:
        """A label that waits for its image from now on."""
        self._repeated += key in self.labels
        self.labels.setdefault(key, label)

    def take(self, key: str) -> tuple[Image, int] | None:
        """The pair of this name, once, if it is whole."""
        if key in self.images and key in self.labels:
            return self.images.pop(key), self.labels.pop(key)
        return None

    def left_out(self, shard: str | os.PathLike[str]) -> str:
        """What to say of the shard when all is read; nothing where everything was in a pair."""
        count = len(self.images) + len(self.labels) + self._repeated
        what = "members lack their .jpg or .cls, or have another's name, and are left out"
        return f"{shard}: {count} {what}" if count else ""


@contextmanager
def _read_errors() -> Iterator[None]:
    """Whatever `tarfile` makes of a bad header is one kind of error; those of the disk stay."""
    try:
        yield
    except (tarfile.ReadError, UserError, OSError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"bad header: {type(error).__name__} {error}") from error


def split_name(info: tarfile.TarInfo) -> tuple[str, str]:
    """What a member shares with its pair, and its suffix in small letters."""
    key, suffix = os.path.splitext(info.name)
    return key, suffix.lower()


def parse_label(text: bytes, name: str) -> int:
    """The number in the first `LABEL_BYTES + 1` bytes of a `.cls` file; UserError for another."""
    digits = text.strip()
    if len(text) > LABEL_BYTES or not digits.isdigit() or int(digits) > MAX_LABEL:
        raise UserError(
            f"{name}: expected a label of 0 or more, up to {MAX_LABEL}, got {text[:32]!r}"
        )
    return int(digits)
