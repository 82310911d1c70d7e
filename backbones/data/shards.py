"""Reading WebDataset shards from beginning to end, from URLs and files."""

import functools
import io
import itertools
import logging
import math
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO, NamedTuple, cast

from backbones.common.addresses import without_secrets
from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.data.tar import (
    LABEL_BYTES,
    MAX_IMAGE_BYTES,
    Pairs,
    members,
    open_tar,
    parse_label,
    split_name,
)

logger = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
"""Waits before a server is asked again; what arrives in between starts them anew."""
TIMEOUT_SECONDS = 60.0
"""Longest silence of a server."""
_MAX_NAMES = 1_000_000
"""Of shards; more are a slip of the pen, and gigabytes."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP codes that say to come again later."""


class Sample(NamedTuple):
    """An encoded image, its label, and `SHARD:MEMBER` for messages."""

    data: bytes
    label: int
    name: str


def expand_braces(pattern: str) -> list[str]:
    """Names of a pattern: `{000..127}` stands for numbers of as many digits, `{a,b}` for parts.

    Raises:
        UserError: a brace holds neither, or is not closed, or they stand for too many names.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if any(brace in piece for piece in pieces[::2] for brace in "{}"):
        raise UserError(
            f"{without_secrets(pattern)}: expected braces in pairs, as in train-{{0000..0127}}.tar"
        )
    choices = [
        _alternatives(piece, pattern) if index % 2 else [piece]
        for index, piece in enumerate(pieces)
    ]
    if math.prod(map(len, choices)) > _MAX_NAMES:
        raise UserError(f"{without_secrets(pattern)}: expected at most {_MAX_NAMES} shards")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _alternatives(text: str, pattern: str) -> list[str]:
    if "," in text:
        return text.split(",")
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", text)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        shown = without_secrets(pattern)
        raise UserError(f"{shown}: expected {{0000..0127}} or {{a,b}}, got {{{text}}}")
    first, last = numbers.groups()
    if int(last) - int(first) >= _MAX_NAMES:
        raise UserError(f"{without_secrets(pattern)}: expected at most {_MAX_NAMES} shards")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def is_url(location: str) -> bool:
    """Whether a shard or list of classes is to be fetched from a server."""
    return location.startswith(("http://", "https://"))


def open_stream(location: str) -> IO[bytes]:
    """Open a file or URL for reading from its beginning.

    Raises:
        UserError: no such file; another kind of URL; the server refuses, or cannot be reached for
            some time.
    """
    if is_url(location):
        return cast(IO[bytes], _UrlStream(location))
    if "://" in location:
        shown = without_secrets(location)
        raise UserError(f"{shown}: expected a file or an https address, which buckets have too")
    try:
        return Path(location).open("rb")
    except OSError as error:
        raise UserError(f"{location}: cannot read shard: {error.strerror}") from error


def read_shard(location: str) -> Iterator[Sample]:
    """The pairs of `NAME.jpg` and `NAME.cls` of a shard, in the order of `Pairs`.

    A shard cut off in the middle ends there with a warning.

    Raises:
        UserError: cannot be opened, is no tar file, holds no pair, or a label is no number.
    """
    shown = without_secrets(location)
    pairs = Pairs[tuple[bytes, str]]()
    count = 0
    with open_stream(location) as stream:
        tail = _Tail(stream)
        try:
            with open_tar(cast(IO[bytes], tail), "r|") as tar:
                for info in members(tar):
                    (key, suffix), name = split_name(info), f"{shown}:{info.name}"
                    if suffix in IMAGE_SUFFIXES:
                        if info.size > MAX_IMAGE_BYTES:
                            _tell_once(f"{name}: {info.size} bytes are no image, left out")
                            continue
                        pairs.add_image(key, (_content(tar, info), name))
                    elif suffix == ".cls":
                        label = parse_label(_content(tar, info, LABEL_BYTES + 1), name)
                        pairs.add_label(key, label)
                    if pair := pairs.take(key):
                        count += 1
                        (data, name), label = pair
                        yield Sample(data, label, name)
            if not tail.is_zeros:
                # tarfile takes a file that ends between or in headers for a whole one.
                raise tarfile.ReadError("unexpected end of data")
        except tarfile.TarError as error:
            if count == 0:
                raise UserError(f"{shown}: not a tar file, or damaged: {error}") from error
            _tell_once(f"{shown}: damaged after {count} images: {error}")
            return
    if count == 0:
        raise UserError(f"{shown}: expected members NAME.jpg and NAME.cls, found none")
    if message := pairs.left_out(shown):
        _tell_once(message)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo, size: int = -1) -> bytes:
    file = tar.extractfile(info)
    assert file is not None, "a regular file"
    return file.read(size)


@functools.cache
def _tell_once(message: str) -> None:
    """Each shard is read again in every pass. An error, for of several processes the main one alone
    logs warnings, and others read other shards."""
    logger.error("%s", message)


class _Tail:
    """A stream that remembers its last block, which is zeros at the end of a whole tar file.

    Its end can be read once: `tarfile` would read it for hours to come to where a header points.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""
        self._has_ended = False

    def read(self, size: int) -> bytes:
        if self._has_ended:
            raise tarfile.ReadError("unexpected end of data")
        data = self._stream.read(size)
        self._has_ended = not data
        self._last = (self._last + data)[-tarfile.BLOCKSIZE :]
        return data

    @property
    def is_zeros(self) -> bool:
        return self._last == bytes(tarfile.BLOCKSIZE)


class _UrlStream(io.RawIOBase):
    """The bytes of a URL; where the connection breaks, they go on from the same byte."""

    def __init__(self, url: str) -> None:
        self._url, self._shown = url, without_secrets(url)
        self._position = 0
        self._length: int | None = None
        self._response: IO[bytes] | None = None
        self._waits = iter(RETRY_SECONDS)
        self._fetch(0)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._fetch(size)
        if data:
            self._position += len(data)
            self._waits = iter(RETRY_SECONDS)
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
        super().close()

    def _fetch(self, size: int) -> bytes:
        while True:
            try:
                if self._response is None:
                    self._response = self._connect()
                data = self._response.read(size)
                if data or size == 0 or self._length in (None, self._position):
                    return data
                problem = f"connection closed after {self._position} of {self._length} bytes"
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}"
                if error.code not in _BUSY:
                    raise UserError(f"{self._shown}: the server says {problem}") from error
            except (OSError, HTTPException) as error:
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if self._response is not None:
                self._response.close()
                self._response = None
            wait = next(self._waits, None)
            if wait is None:
                tries = len(RETRY_SECONDS) + 1
                raise UserError(f"{self._shown}: cannot be read, tried {tries} times: {problem}")
            logger.info("%s: %s: trying again in %g s", self._shown, problem, wait)
            time.sleep(wait)

    def _connect(self) -> IO[bytes]:
        """Ask for the bytes from the present position on."""
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        request = urllib.request.Request(self._url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        missing = self._position
        if response.status == 206:
            missing = 0
        else:
            self._length = response.length  # None where the server says none, or no number
        # A server without ranges begins anew.
        while missing:
            skipped = len(response.read(min(missing, 1 << 20)))
            if skipped == 0:
                raise ConnectionError(f"connection closed before byte {self._position}")
            missing -= skipped
        return cast(IO[bytes], response)
