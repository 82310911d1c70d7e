"""Pictures and streams behind addresses, of servers of this machine."""

import codecs
import io
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.shard_server import serve

from backbones.common.errors import ImageError, UserError
from backbones.common.images import write_image
from backbones.data.shards import read_shard
from detect.inference.results import name_of
from detect.media import addresses, video
from detect.media.addresses import Address, fetch_image
from detect.media.sources import Source, find_inputs, read_images, spread_images
from detect.media.video import VideoReader, slideshow

NOISE = torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_image(tmp_path / "a.png", NOISE[0])
    slideshow(tmp_path / "v.mp4", list(NOISE), 10, (64, 64))
    return tmp_path


def test_addresses_are_pictures_or_streams(folder, monkeypatch):
    (folder / "7").mkdir()
    write_image(folder / "7/b.png", NOISE[1])
    monkeypatch.chdir(folder)
    names = ["HTTPS://user:secret@host/x/a%20b.JPG?size=3", "rtsp://host:554/live", "0", "7"]
    names += ["http://host/", "http://host/list.m3u8", "RTSP://host/x.jpg"]
    found = find_inputs(names)
    assert [path.stem for path in found.images] == ["a b", "b"]
    assert [path.stem for path in found.videos] == ["live", "camera_0", "host", "list", "x"]
    assert str(found.images[0]) == "HTTPS://user:***@host/x/a%20b.JPG?size=***"
    assert str(found.videos[0]) == names[1]
    for wrong in ("ftp://host/a.jpg", "file:///etc/a.jpg", "concat://a.mp4"):
        with pytest.raises(UserError, match="expected an address of http, https, rtsp"):
            find_inputs([wrong])
    wrongs = ("http://[/a.jpg", "https:///a.jpg", "http://host:x/a.jpg", "rtsp://me:a/hid@:1")
    for wrong in wrongs:
        with pytest.raises(UserError, match="expected an address as https://host") as caught:
            find_inputs([wrong])
        assert "hid" not in str(caught.value)
    assert list(spread_images(Source([], found.videos), 3)) == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:se@cret@host:80/a.jpg", "https://me:***@host:80/a.jpg"),
        ("https://secret@host/x@y/a.jpg", "https://***@host/x@y/a.jpg"),
        ("http://host/a.jpg?token=secret==&size=3;secret#secret", "http://host/a.jpg?token=***&s"),
        ("rtsp://:secret@host/live?secret", "rtsp://***@host/live?***"),
        ("http://host:80/a&b=c.jpg", "http://host:80/a&b=c.jpg"),
    ],
)
def test_secrets_are_not_shown(address, shown):
    (found,) = [*(source := find_inputs([address])).images, *source.videos]
    assert str(found).startswith(shown)
    for text in (str(found), name_of(found)):
        assert "secret" not in text
        assert "cret@" not in text


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("http://host/a.jpg?id=1", "http://host/a.jpg?id=2"),
        ("http://host/a.jpg#1", "http://host/a.jpg#2"),
        ("rtsp://me:1@host/live", "rtsp://me:2@host/live"),
        ("rtsp://1@host/live?x=1", "rtsp://2@host/live?x=1"),
    ],
)
def test_two_that_differ_in_secrets_alone_are_two_in_the_lists(one, two):
    assert str(Address(one)) == str(Address(two))
    assert name_of(Address(one)) != name_of(Address(two))
    assert name_of(Address(one)) == name_of(Address(one))
    assert name_of(Address("http://host/a.jpg")) == "http://host/a.jpg"


def test_a_shard_at_an_address_keeps_its_secret(folder):
    words = r"no\.tar\?token=\*\*\*: the server says 404"
    with serve(folder) as (url, _), pytest.raises(UserError, match=words):
        next(read_shard(f"{url}/no.tar?token=secret"))


def test_names_on_standard_input_and_folders_in_folders(folder, monkeypatch, caplog):
    below = folder / "x/y"
    below.mkdir(parents=True)
    strange = Path(os.fsdecode(os.fsencode(below) + b"/\xff [1]\x0b.png"))
    for path in (strange, below / "notes.txt", below / ".hidden.png"):
        path.write_bytes(b"x")
    found = find_inputs([str(folder)], recursive=True)
    assert found == Source([folder / "a.png", strange], [folder / "v.mp4"])
    assert "left out for their suffix: 1 (.txt)" in caplog.text
    # As Notepad writes it, with a mark at the beginning.
    listed = b"\n".join(
        [codecs.BOM_UTF8 + os.fsencode(strange), b"", os.fsencode(folder / "a.png") + b"\r", b""]
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.replace(b"\r", b"\r\n"))))
    assert find_inputs(["-"]).images == [strange, folder / "a.png"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(UserError, match="standard input names none"):
        find_inputs(["-"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.pgn\n")))
    with pytest.raises(UserError, match=r"a\.pgn: no such file or folder"):
        find_inputs(["-"])


def test_pictures_are_fetched_and_what_is_wrong_is_a_line(folder, monkeypatch):
    (folder / "no.png").write_bytes(b"<html>")
    with serve(folder) as (url, faults):
        assert torch.equal(fetch_image(Address(f"{url}/a.png")), NOISE[0])
        secret = url.replace("http://", "http://me:se%20cret@")
        assert torch.equal(fetch_image(Address(f"{secret}/a.png")), NOISE[0])
        for name, message in (("b.png", "server says 404"), ("no.png", "not an image in a known")):
            with pytest.raises(ImageError, match=rf"/{name}: .*{message}"):
                fetch_image(Address(f"{url}/{name}"))
        faults.breaks, faults.sent = 1, 3000
        with pytest.raises(ImageError, match=r"a\.png: broke off, \d+ bytes are missing"):
            fetch_image(Address(f"{url}/a.png"))
        # Whole as a picture, but not all that the server has.
        whole = (folder / "a.png").read_bytes()
        (folder / "more.png").write_bytes(whole + bytes(10))
        faults.breaks, faults.sent = 1, len(whole)
        with pytest.raises(ImageError, match=r"more\.png: broke off, 10 bytes are missing"):
            fetch_image(Address(f"{url}/more.png"))
        monkeypatch.setattr(addresses, "MAX_IMAGE_BYTES", 1000)
        ((_, error),) = read_images([Address(f"{url}/a.png")])
    assert str(error).endswith("/a.png: more than 1000 bytes are no picture")
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch_image(Address(f"{url}/a.png"))


def test_a_silent_server_is_not_waited_for_for_long(monkeypatch):
    monkeypatch.setattr(addresses, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(video, "TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ImageError, match=r"a\.png: cannot be fetched: .*timed out"):
            fetch_image(Address(f"http://{host}/a.png"))
        with pytest.raises(UserError, match=r"video: nothing came for 0\.3 seconds"):
            VideoReader(Address(f"http://{host}/live"))
        with pytest.raises(UserError, match="cannot open video"):
            VideoReader(Address(f"rtsp://{host}/live"))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("head", ["HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.0 200 O"])
def test_a_slow_server_has_an_end(head, monkeypatch):
    """Be it the picture that comes byte by byte, or what stands before it."""
    monkeypatch.setattr(addresses, "LONGEST_SECONDS", 0.4)
    monkeypatch.setattr(video, "TIMEOUT_SECONDS", 0.4)

    def drip(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(head.encode())
            with suppress(OSError):
                for _ in range(40):
                    time.sleep(0.1)
                    client.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        url, began = f"http://127.0.0.1:{server.getsockname()[1]}", time.monotonic()
        for _ in range(2):
            threading.Thread(target=drip, args=(server,), daemon=True).start()
        with pytest.raises(ImageError, match=r"did not come within 0\.4 seconds"):
            fetch_image(Address(f"{url}/a.png"))
        with pytest.raises(UserError, match=r"live: cannot open video"):
            VideoReader(Address(f"{url}/live"))
        assert time.monotonic() - began < 2


def test_a_stream_has_the_frames_of_the_file(folder):
    with serve(folder) as (url, faults):
        frames = list(VideoReader(Address(f"{url}/v.mp4")))
        faults.breaks, faults.sent = 9, 3000
        with pytest.raises(UserError, match=r"v\.mp4: "):
            list(VideoReader(Address(f"{url}/v.mp4")))
    assert torch.equal(torch.stack(frames), torch.stack(list(VideoReader(folder / "v.mp4"))))


def test_every_nth_frame_keeps_its_time(folder):
    whole = list(VideoReader(folder / "v.mp4").timed())
    some = list(VideoReader(folder / "v.mp4", every=5).timed())
    assert [time for _, time in some] == [0.0, 0.5, 1.0]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(some, whole[::5], strict=True))


@pytest.mark.parametrize("suffix", ["m3u8", "mkv", "sdp"])
def test_a_playlist_at_an_address_opens_nothing_else(folder, suffix):
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder}/v.mp4\n#EXT-X-ENDLIST\n"
    with serve(folder) as (url, faults):
        for target in (
            playlist,
            playlist.replace(str(folder), url),
            f"ffconcat version 1.0\nfile {url}/v.mp4\n",
        ):
            (folder / f"list.{suffix}").write_text(target)
            with pytest.raises(
                UserError, match=r"cannot open video: .*; of a playlist or a web page"
            ):
                VideoReader(Address(f"{url}/list.{suffix}"))
        assert {path for path, _ in faults.requests} == {f"/list.{suffix}"}


def test_a_damaged_file_is_told_of_as_a_file(folder):
    (folder / "bad.mp4").write_bytes(b"x" * 5000)
    words = (
        r"bad\.mp4: cannot open video: of no known format, or damaged \(Invalid data found[^;]*\)$"
    )
    with pytest.raises(UserError, match=words):
        VideoReader(folder / "bad.mp4")


def test_a_camera_that_is_not_there_is_a_line():
    with pytest.raises(UserError, match="camera 98: cannot open video: No such file"):
        VideoReader(Address("98"))


def test_an_address_may_be_longer_than_a_name_and_have_umlauts(folder):
    (folder / "\u00fc b.png").write_bytes((folder / "a.png").read_bytes())
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (address,) = find_inputs([f"{url}/\u00fc b.png?signature={'x' * 400}"]).images
        assert torch.equal(fetch_image(address), NOISE[0])
        server.shutdown()


@pytest.mark.parametrize("place", ["ftp://127.0.0.1:{}/x.png", "file:///etc/passwd"])
def test_a_server_cannot_redirect_to_what_is_no_address(place):
    """The port that it names would answer."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        other.settimeout(0.2)
        head = "HTTP/1.1 302 Found\r\nLocation: " + place.format(other.getsockname()[1])

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"{head}\r\n\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ImageError, match=r"redirected to ftp|not allowed"):
            fetch_image(Address(f"http://127.0.0.1:{server.getsockname()[1]}/a.png"))
        with pytest.raises(TimeoutError):
            other.accept()


def test_standard_input_that_is_closed_is_a_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        find_inputs(["-"])
