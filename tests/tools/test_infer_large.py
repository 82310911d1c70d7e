"""Memory of inference over many inputs. Only `make test-large` runs these: minutes."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.untrained_detector import save_untrained

from backbones.common.images import write_image
from detect.media.video import slideshow

pytestmark = pytest.mark.large


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("detector") / "x.safetensors", 3)


def memory_by_count(weights: Path, inputs: Path, output: Path) -> dict[int, int]:
    """Runs `tools.infer`; bytes of memory it had by the number of images done then."""
    command = [sys.executable, "-m", "tools.infer", "--weights", str(weights)]
    command += ["--inputs", str(inputs), "--output", str(output), "--score_thresh", "0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    memory: dict[int, int] = {}
    entries = output / ".images.json.partial"
    while process.poll() is None:
        time.sleep(0.05)
        try:
            done = entries.read_bytes().count(b'"id"')
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, IndexError):
            continue
        memory[done] = pages * os.sysconf("SC_PAGE_SIZE")
    assert process.returncode == 0
    return memory


def check_no_growth(memory: dict[int, int], total: int, what: str) -> None:
    early = [size for count, size in memory.items() if total // 20 < count <= total // 5]
    late = [size for count, size in memory.items() if count > total * 0.9]
    growth = np.median(late) / np.median(early)
    print(f"\n{what}: {np.median(early) / 1e6:.0f} MB early, {growth:.3f} times as much at the end")
    assert 0.8 < growth < 1.05


def test_memory_does_not_grow_with_the_images(weights, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    write_image(folder / "0.jpg", torch.randint(0, 256, (3, 480, 640), generator=random).byte())
    for index in range(1, 2000):
        os.link(folder / "0.jpg", folder / f"{index}.jpg")
    memory = memory_by_count(weights, folder, output)
    check_no_growth(memory, 2000, "2,000 images")
    assert len(json.loads((output / "images.json").read_text())["images"]) == 2000


def test_memory_does_not_grow_with_a_video_of_ten_minutes(weights, tmp_path):
    frames = torch.randint(0, 256, (25, 3, 120, 160), dtype=torch.uint8)
    count = 10 * 60 * 25
    video = tmp_path / "video.mp4"
    slideshow(video, itertools.islice(itertools.cycle(frames), count), 25, (120, 160))
    memory = memory_by_count(weights, video, tmp_path / "out")
    check_no_growth(memory, count, "10 minutes of video")
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["frame"] for image in images] == list(range(count))
