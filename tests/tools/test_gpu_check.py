"""The check for a GPU, tiny and on the CPU: all its parts run, and a failing one stands alone."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tool_runs import error_of, run
from PIL import Image

from backbones.benchmarks import gpu_correctness
from backbones.benchmarks.carried_images import pack_shards, unpack_shards
from backbones.benchmarks.half_weights import join_half, save_half
from backbones.data.sources import open_split
from backbones.networks.weights import load_weights, save_weights
from detect.benchmarks import gpu_carried
from tools import gpu_check, gpu_pack

SIDE = 16


def write_shards(root: Path, train: int, val: int) -> None:
    """Images of two classes, a dark and a bright one."""
    root.mkdir()
    (root / "classes.json").write_text('["dark", "bright"]')
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        with tarfile.open(root / f"{split}-0000.tar", "w") as tar:
            for number in range(count):
                label = number % 2
                noise = rng.integers(0, 60, (4, 4, 3), dtype=np.uint8) + np.uint8(120 * label)
                image = Image.fromarray(noise).resize((SIDE, SIDE))
                for suffix in ("jpg", "cls"):
                    file = root / f"{number}.{suffix}"
                    if suffix == "jpg":
                        image.save(file, quality=95)
                    else:
                        file.write_text(str(label))
                    tar.add(file, f"{split}_{number}.{suffix}")
                    file.unlink()


def write_voc(root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"cell_{number}" for number in range(9)]
    for number, name in enumerate(names):
        pixels = rng.integers(0, 60, (72, 96, 3), dtype=np.uint8)
        pixels[20:50, 10 + number : 40 + number] += 150
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        kind = ("RBC", "WBC", "Platelets")[number % 3]
        box = f"<xmin>{11 + number}</xmin><ymin>21</ymin><xmax>{40 + number}</xmax><ymax>50</ymax>"
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><width>96</width><height>72</height></size>"
            f"<object><name>{kind}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    lists = {"trainval": names[:8], "test": names[8:]}
    for split, chosen in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen))


@pytest.fixture(scope="module")
def carried(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_shards(folder / "images", train=20, val=6)
    write_voc(folder / "bccd")
    gpu_carried.pack(folder / "images", folder / "bccd", folder / "carried", val_images=4)
    return folder / "carried"


def test_all_parts_on_a_cpu_and_one_that_fails(carried, tmp_path, monkeypatch, capsys):
    def broken(settings):
        raise ArithmeticError("injected")

    monkeypatch.setattr(gpu_correctness, "check_deployed", broken)
    arguments = ("--carried", str(carried), "--output", str(tmp_path), "--device", "cpu")
    assert run(gpu_check, *arguments, "--minutes", "5", monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    written = json.loads((tmp_path / "gpu_check.json").read_text())

    # The failure is named, explained, and alone.
    assert list(written["failures"]) == ["deployed networks"]
    assert "ArithmeticError: injected" in written["failures"]["deployed networks"]
    assert "in broken" in (tmp_path / "log.txt").read_text()
    assert "deployed networks: FAILED" in table.splitlines()[-3]

    values = {
        finding["name"]: finding["value"] for part in written["parts"].values() for finding in part
    }
    assert [p for p, found in written["parts"].items() if not found] == []
    assert values["NCCL"] == "not on this device"
    assert values["inception_v3_79_naive: logits beside torchvision's"] < 1e-5
    assert values["weights of the resumed run"] == 0
    assert values["stopped after step"] == 3
    assert values["ours, deployed"] > 0
    assert values["input pipeline, 0 processes"] > 0
    assert 0 <= values["BCCD from the backbone: AP, 1 epochs"] <= 1
    assert 0 <= values["BCCD from random weights: AP, 1 epochs"] <= 1
    # What comes back: both networks, in half precision.
    weights = {path.name for path in tmp_path.glob("*.safetensors")}
    assert weights == {"inception_v3_79_naive_25.safetensors"}
    assert all(not finding["name"].startswith("FAILED") for finding in written["parts"]["training"])


def test_packed_images_come_back(tmp_path):
    write_shards(tmp_path / "root", train=7, val=5)
    pack_shards(tmp_path / "root", tmp_path / "packed", val_images=3)
    unpack_shards(tmp_path / "packed", tmp_path / "back")
    for split, count in (("train", 7), ("val", 3)):
        before, after = (open_split(tmp_path / root, split) for root in ("root", "back"))
        assert after.labels == before.labels[:count]
        assert after.class_names == before.class_names
    old, new = (open_split(tmp_path / root, "val").read(0)[0] for root in ("root", "back"))
    assert old == new  # validation images bit for bit


def test_weights_in_half_precision_and_parts(tmp_path):
    state = {f"layer{n}": torch.randn(400, 200) for n in range(4)}
    state["count"] = torch.tensor(3)
    save_weights(tmp_path / "w.safetensors", state, {"kind": "backbone"})
    paths = save_half(tmp_path / "w.safetensors", tmp_path / "half.safetensors", 600_000)
    assert [path.name for path in paths] == ["half-1.safetensors", "half-2.safetensors"]
    assert all(path.stat().st_size < 600_000 for path in paths)
    joined, metadata = join_half(paths)
    assert metadata["kind"] == "backbone"
    assert joined.keys() == state.keys()
    assert load_weights(paths[0])[0]["layer0"].dtype == torch.float16
    torch.testing.assert_close(joined["layer3"], state["layer3"], rtol=1e-3, atol=1e-3)


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    output = ("--output", str(tmp_path / "out"))
    error = error_of(gpu_check, *output, "--carried", "no", monkeypatch=monkeypatch, capsys=capsys)
    assert "no: no bccd.tar.xz in it: expected a folder that tools.gpu_pack wrote" in error
    error = error_of(gpu_check, *output, "--minutes", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert "minutes must be more than 0" in error
    monkeypatch.setattr(gpu_pack, "download_wheels", lambda folder, python: None)
    error = error_of(gpu_pack, *output, "--bccd", "no", monkeypatch=monkeypatch, capsys=capsys)
    assert "no: no folder Annotations in it" in error
