"""A web server for shards in this process, and what it can be made to do wrong."""

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image


class Faults:
    """What the server does wrong, to be set by a test.

    Attributes:
        refusals: requests still to be answered by `code`.
        code: HTTP code of a refusal.
        breaks: answers still to be broken off after `sent` bytes.
        sent: bytes of such an answer.
        ranges: whether requests for a part are understood.
        requests: what was asked for, with its Range header.
    """

    def __init__(self) -> None:
        self.refusals, self.code = 0, 503
        self.breaks, self.sent = 0, 0
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Faults]]:
    """Serve a folder's files; gives the URL of the folder and the faults to set."""
    faults = Faults()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            faults.requests.append((self.path, wanted))
            path = folder / self.path.lstrip("/")
            if faults.refusals or not path.is_file():
                self.send_error(faults.code if faults.refusals else 404)
                faults.refusals = max(faults.refusals - 1, 0)
                return
            data = path.read_bytes()
            start = 0
            if wanted and faults.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = len(data)
            if faults.breaks:
                faults.breaks -= 1
                end = start + faults.sent
            self.wfile.write(data[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs(first: int, count: int) -> list[tuple[str, bytes]]:
    """Members of `count` examples, their number in name and grey level, its last digit as label."""
    members = []
    for number in range(first, first + count):
        members += [
            (f"{number:04d}.png", png(number % 256)),
            (f"{number:04d}.cls", str(number % 10).encode()),
        ]
    return members
