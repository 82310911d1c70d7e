"""tools/infer.py among inputs that are none: each is one line, and the others are done."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import torch
from helpers.untrained_detector import save_untrained
from PIL import Image

from backbones.common.images import write_image
from detect.media.video import VideoReader, slideshow


def picture(path: Path, **options) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def wide_video(path: Path) -> None:
    """Wider than H.264 can be."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 17_000, 16, "yuv420p"
        pixels = np.zeros((16, 17_000, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def resized(png: bytes, width: int, height: int) -> bytes:
    """A file that says that it is larger than it is."""
    data = bytearray(png)
    data[16:24] = struct.pack(">2I", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_each_fault_is_a_line_and_the_rest_is_done(tmp_path):
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for name in ("a_good.jpg", "z_good.png"):
        picture(inputs / name)
    picture(inputs / f"{'n' * 250}.png")
    slideshow(inputs / "good.mp4", [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 3, 5, (64, 64))
    # What could not be read to its end, or at all.
    write_image(inputs / "b_wide.png", torch.zeros(3, 1, 70_000, dtype=torch.uint8))
    (inputs / "c_eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    png = (inputs / "z_good.png").read_bytes()
    (inputs / "d_182_megapixels.png").write_bytes(resized(png, 14_000, 13_000))
    (inputs / "e_large.png").write_bytes(resized(png, 30_000, 30_000))
    (inputs / "f_loop.jpg").symlink_to(inputs / "f_loop.jpg")
    (inputs / "g_device.jpg").symlink_to("/dev/zero")
    os.mkfifo(inputs / "h_pipe.jpg")
    os.mkfifo(inputs / "h_pipe.mp4")
    wide_video(inputs / "i_wide.mkv")
    data = (inputs / "good.mp4").read_bytes()
    (inputs / "j_codec.mp4").write_bytes(data.replace(b"avc1", b"none").replace(b"avcC", b"none"))
    weights = save_untrained(tmp_path / "x.safetensors", 10)
    arguments = ["--weights", str(weights), "--inputs", str(inputs), "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.infer", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    counts = "inputs that could not be read: 8, results that could not be written: 2"
    assert f"error: {counts}, see above" in lines
    # What JPEG and H.264 cannot hold is a fault of the result, not of its input.
    for name, size in (
        ("b_wide.jpg", "an image of 70000x1"),
        ("i_wide.mp4", "a video of 17000x16"),
    ):
        words = f"{output / name}: cannot write {size} pixels: "
        (line,) = (line for line in lines if words in line)
        assert line.endswith(f" (of {next(inputs.glob(f'{name[:6]}.*'))})")
    for words in ("Traceback", "Warning", "DOS"):
        assert words not in done.stderr
    for name in sorted(path.name for path in inputs.iterdir() if path.name[1] == "_"):
        about = [line for line in lines if str(inputs / name) in line]
        assert len(about) == ("good" not in name), done.stderr
    assert "e_large.png: more than 200 megapixels" in done.stderr
    written = {path.name for path in output.iterdir()}
    assert written >= {"a_good.jpg", "z_good.jpg", f"{'n' * 200}.jpg", "good.mp4"}
    assert len(list(VideoReader(output / "good.mp4"))) == 3
    images = json.loads((output / "images.json").read_text())["images"]
    assert [image["time"] for image in images if image["annotated"] == "good.mp4"] == [0, 0.2, 0.4]
    json.loads((output / "results.json").read_text())
