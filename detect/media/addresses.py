"""Inputs that are no files: pictures and streams on the net, and cameras."""

import base64
import hashlib
import os
import string
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import PurePosixPath
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from torch import Tensor

from backbones.common.addresses import without_secrets
from backbones.common.errors import ImageError
from backbones.common.images import decode_image

SCHEMES = ("http", "https", "rtsp", "rtsps")

TIMEOUT_SECONDS = 20.0
"""That a server or camera may be silent."""

LONGEST_SECONDS = 120.0
"""That a picture may take to come, from the look-up of its server's name on."""

MAX_IMAGE_BYTES = 200_000_000


@dataclass(frozen=True)
class Address:
    """A picture or stream on the net, or a camera of this machine.

    Attributes:
        url: `https://host/a.jpg`, `rtsp://host/stream`; of a camera its number.
    """

    url: str

    @property
    def is_camera(self) -> bool:
        """Whether it is the number of a camera."""
        return self.url.isdecimal()

    @property
    def suffix(self) -> str:
        """As of a file of this name: `.jpg`; what RTSP gives is a stream, whatever its name."""
        return self._path.suffix if self.url.lower().startswith("http") else ""

    @property
    def stem(self) -> str:
        """What results are named after: the last part of the path, or the host."""
        host = urlsplit(self.url).hostname or "stream"
        return f"camera_{self.url}" if self.is_camera else self._path.stem or host

    @property
    def _path(self) -> PurePosixPath:
        return PurePosixPath(unquote(urlsplit(self.url).path))

    def __str__(self) -> str:
        """As named, but for secrets."""
        return f"camera {self.url}" if self.is_camera else without_secrets(self.url)

    @property
    def listed(self) -> str:
        """As `str`; eight digits of a digest tell it from one that differs in its secrets alone."""
        if self.is_camera or str(self) == self.url:
            return str(self)
        return f"{self}#{hashlib.sha256(os.fsencode(self.url)).hexdigest()[:8]}"


class _NoFTP(urllib.request.FTPHandler):
    """Where a server redirects to is no address that this package reads."""

    def ftp_open(self, req: urllib.request.Request) -> NoReturn:
        raise urllib.error.URLError(f"redirected to {without_secrets(req.full_url)}")


def fetch_image(address: Address) -> Tensor:
    """A picture on the net as `uint8` RGB `[3, H, W]`.

    Raises:
        ImageError: the server does not give all of it, in time, or it is none; see `decode_image`.
    """
    data = Future[bytes]()

    def fetch() -> None:
        try:
            data.set_result(_fetch(address))
        except BaseException as error:
            data.set_exception(error)

    # In a thread that can be left behind: names are looked up without a limit, and the limit of a
    # socket begins anew with each byte of a head that comes byte by byte.
    threading.Thread(target=fetch, daemon=True).start()
    try:
        return decode_image(data.result(LONGEST_SECONDS), str(address))
    except TimeoutError as error:
        raise _too_slow(address) from error


def _too_slow(address: Address) -> ImageError:
    return ImageError(f"{address}: did not come within {LONGEST_SECONDS:g} seconds")


def _fetch(address: Address) -> bytes:
    parts = urlsplit(address.url)
    user, at, host = parts.netloc.rpartition("@")
    # Umlauts and spaces as servers take them; what is quoted already stays.
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    url = urlunsplit(parts._replace(netloc=host, path=path, query=query))
    request = urllib.request.Request(url)
    request.add_header("User-Agent", "lowres-rcnn")
    if at:  # for this server alone, not for one that it redirects to
        secret = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    ends, data = time.monotonic() + LONGEST_SECONDS, bytearray()
    try:
        opener = urllib.request.build_opener(_NoFTP)
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            while part := response.read1(1 << 20):
                data += part
                if len(data) > MAX_IMAGE_BYTES:
                    raise ImageError(f"{address}: more than {MAX_IMAGE_BYTES} bytes are no picture")
                if time.monotonic() > ends:
                    raise _too_slow(address)
            if response.length:
                raise ImageError(f"{address}: broke off, {response.length} bytes are missing")
    except urllib.error.HTTPError as error:
        raise ImageError(f"{address}: the server says {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "reason", error)
        raise ImageError(f"{address}: cannot be fetched: {reason}") from error
    return bytes(data)
