"""A web server in this process that stands for torchvision's and Hugging Face's."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What the server has and does.

    Attributes:
        url: of the server.
        files: by the last part of their path.
        cut: files that break off after a hundred bytes.
        requests: what was asked for.
        made: repositories that were made, as the client described them.
        refuse: status that whatever is to be written is answered with, instead of taking it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.refuse: int | None = None

    def take(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer to a client that makes a repository or puts files into it."""
        if path == "/api/repos/create":
            self.made.append(made := json.loads(body))
            return {"url": f"{self.url}/{made.get('organization')}/{made['name']}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            as_is = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"]} | as_is for file in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            oid = "0" * 40
            return {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}
        return {}  # a card's head, which is looked at


@contextmanager
def weights_server() -> Iterator[Hub]:
    """Serve weights until the block ends; nothing answers from then on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            hub.requests.append(f"{self.command} {name}")
            data = hub.files.get(name)
            self.send_response(404 if data is None else 200)
            if data is None:
                code = "EntryNotFound" if hub.files or hub.made else "RepoNotFound"
                self.send_header("X-Error-Code", code)
            else:  # as the Hugging Face hub says what a file is
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET" and data is not None:
                self.wfile.write(data[:100] if name in hub.cut else data)
            self.close_connection = True

        do_HEAD = do_GET

        def do_POST(self) -> None:
            hub.requests.append(f"POST {self.path}")
            body = self.body()
            answer = json.dumps({} if hub.refuse else hub.take(self.path.partition("?")[0], body))
            self.send_response(hub.refuse or 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())
            self.close_connection = True

        def body(self) -> bytes:
            if length := self.headers["Content-Length"]:
                return self.rfile.read(int(length))
            chunks = b""
            while size := int(self.rfile.readline(), 16):
                chunks += self.rfile.read(size)
                self.rfile.readline()
            return chunks

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
