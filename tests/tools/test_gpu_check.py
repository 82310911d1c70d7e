"""The check for a GPU, tiny and on the CPU: all its parts run, and a failing one stands alone."""

import json
import os
import pickle
import signal
import tarfile
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from helpers.tool_runs import error_of, run
from PIL import Image
from torch import nn

from backbones.benchmarks.gpu import carried, correctness, processes, speed
from backbones.benchmarks.gpu.processes import OwnProcess, TurnError
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.common.images import decode_image
from backbones.data.sources import open_split
from backbones.networks.weights import load_weights
from backbones.training.step import TrainStep
from detect.benchmarks.gpu import detector, training
from detect.benchmarks.gpu.groups import stages_of
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
    names = [f"cell_{number}" for number in range(5)]
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
    lists = {"trainval": names[:4], "test": names[4:]}
    for split, chosen in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_shards(folder / "images", train=12, val=6)
    write_voc(folder / "bccd")
    carried.pack(folder / "images", folder / "bccd", folder / "carried", val_images=4)
    return folder


def settings_of(folders: Path, tmp_path: Path, device: str = "cpu") -> GpuSettings:
    data = folders / "images", folders / "bccd"
    return GpuSettings(torch.device(device), *data, tmp_path, tmp_path, time.monotonic() + 60)


def test_all_parts_on_a_cpu_one_that_fails_and_one_that_dies(
    folders, tmp_path, monkeypatch, capsys
):
    def broken(settings):
        raise ArithmeticError("injected")

    def dies(*arguments):
        os._exit(3)

    monkeypatch.setattr(correctness, "check_deployed", broken)
    monkeypatch.setattr(speed, "matrix_peak", dies)
    arguments = ("--carried", str(folders / "carried"), "--output", str(tmp_path))
    assert run(gpu_check, *arguments, "--device", "cpu", monkeypatch=monkeypatch) == 0
    table = capsys.readouterr().out
    written = json.loads((tmp_path / "gpu_check.json").read_text())

    # Failures are named, explained, and alone.
    dead = "inference, inception_v3_79_naive, bf16, batch 2"
    assert list(written["failures"]) == ["deployed networks", dead]
    assert "ArithmeticError: injected" in written["failures"]["deployed networks"]
    assert "in broken" in (tmp_path / "log.txt").read_text()
    assert table.splitlines()[-3].endswith(f"deployed networks: this part; {dead}: this part")
    assert written["parts"][dead][-1]["value"] == "FAILED: its process died (exit code 3)"

    values = {
        finding["name"]: finding["value"] for part in written["parts"].values() for finding in part
    }
    assert [p for p, found in written["parts"].items() if not found] == []
    assert values["NCCL"] == "not on this device"
    assert values["inception_v3_79_naive: logits beside torchvision's"] < 1e-5
    assert values["weights of the resumed run"] == 0
    assert values["stopped after step"] == 2
    assert values["as trained: within 1 px, score from 0.05"] == 1
    assert values["ours"] > 0
    assert values["input pipeline, 0 processes"] > 0
    assert values["inception_v3_79_naive at width 0.25: epochs"] == 1
    assert 0 <= values["BCCD from the backbone: AP, 1 epochs"] <= 1
    assert 0 <= values["BCCD from random weights: AP, 1 epochs"] <= 1
    # What comes back.
    weights = {path.name for path in tmp_path.glob("*.safetensors")}
    assert weights == {"inception_v3_79_naive_25.safetensors"}


def test_what_other_processes_run_can_be_sent_to_them(folders, tmp_path):
    """On a GPU they are no copies of this one."""
    stages = stages_of(settings_of(folders, tmp_path, "cuda"), ("correctness", "speed"))
    parts = pickle.loads(pickle.dumps([part for stage in stages for part in stage.parts]))
    checks = {part.name: part.check for part in parts}
    name = "training, inception_v3, bf16, batch 256"
    assert checks[name].__self__ is checks[f"{name}: made ready"].__self__


def test_a_process_that_hangs_keeps_what_it_found(monkeypatch):
    def stubborn():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield "found"
        time.sleep(60)

    monkeypatch.setattr(processes, "GRACE", 0.1)
    process = OwnProcess(stubborn, stubborn).begin()
    values = process.values(0.5)
    assert next(values) == "found"
    with pytest.raises(TurnError, match="took more than 0 seconds and was killed"):
        next(values)
    with pytest.raises(TurnError, match="its process had ended before"):
        list(process.begin().values(1))


def test_detections_agree_where_class_and_place_do():
    def found(*rows):
        boxes, labels, scores = zip(*rows, strict=True)
        tensors = torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(scores)
        return [dict(zip(("boxes", "labels", "scores"), tensors, strict=True))]

    one = found(([0, 0, 9, 9], 1, 0.9), ([5, 5, 9, 9], 2, 0.6), ([7, 7, 8, 8], 1, 0.1))
    other = found(([0, 1, 9, 9], 1, 0.4), ([5, 5, 9, 9], 1, 0.7), ([7, 7, 8, 8], 1, 0.2))
    assert detector.agreement(one, other, 1, 0.5) == (1 / 3, 3)
    assert detector.agreement(one, other, 1, 0.05) == (4 / 6, 6)


def test_a_captured_graph_keeps_what_its_kernels_read(monkeypatch):
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    network = nn.Linear(1, 1)
    alive = weakref.ref(network)
    replay = speed._captured(lambda network=network: network(torch.ones(1)))
    del network
    assert alive() is not None
    replay()


def test_rate_of_a_training_is_that_after_its_first_steps(monkeypatch):
    pauses = [0.0] * 8 + [0.02] * 50
    monkeypatch.setattr(TrainStep, "apply_gradients", lambda self, lr: time.sleep(pauses.pop(0)))

    def train():
        while True:
            TrainStep.apply_gradients(None, 0.1)

    assert 30 < training.steps_a_second(train, 0.4) <= 50.5
    assert len(pauses) > 10


def test_training_stopped_at_the_deadline_keeps_what_it_has(folders, tmp_path, monkeypatch):
    pretrain, apply = training.pretrain, TrainStep.apply_gradients

    def stopping(self, lr):
        apply(self, lr)
        os.kill(os.getpid(), signal.SIGTERM)

    def stopped(config):
        if not config.run.endswith("probe"):
            monkeypatch.setattr(TrainStep, "apply_gradients", stopping)
        return pretrain(config)

    monkeypatch.setattr(training, "pretrain", stopped)
    settings = settings_of(folders, tmp_path)
    found = {f.name: f for f in training._train_backbone(settings, 0.25, settings.deadline)}
    epochs = found["inception_v3_79_naive at width 0.25: epochs"]
    assert epochs.value == pytest.approx(2 / 6)
    assert epochs.met is False
    state, _ = load_weights(tmp_path / "inception_v3_79_naive_25.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.int64}


def test_packed_images_come_back(folders, tmp_path):
    images, bccd = carried.unpack(folders / "carried", tmp_path)
    for split, count in (("train", 12), ("val", 4)):
        before, after = (open_split(root, split) for root in (folders / "images", images))
        assert after.labels == before.labels[:count]
        assert after.class_names == before.class_names
    assert open_split(images, "val").read(1)[0] == open_split(folders / "images", "val").read(1)[0]
    pixels = [
        decode_image(open_split(root, "train").read(3)[0], "").int()
        for root in (folders / "images", images)
    ]
    assert (pixels[0] - pixels[1]).abs().float().mean() < 12
    assert (bccd / "Annotations" / "cell_0.xml").exists()


def test_weights_in_half_precision_and_parts(tmp_path):
    state = {f"layer{n}": torch.randn(400, 200) for n in range(4)}
    state["count"] = torch.tensor(3)
    target = tmp_path / "half.safetensors"
    paths = training.save_half(state, {"kind": "backbone"}, target, 600_000)
    assert [path.name for path in paths] == ["half-1.safetensors", "half-2.safetensors"]
    assert all(path.stat().st_size < 600_000 for path in paths)
    parts = [load_weights(path) for path in paths]
    assert all(metadata["kind"] == "backbone" for _, metadata in parts)
    joined = parts[0][0] | parts[1][0]
    assert joined.keys() == state.keys()
    assert joined["layer3"].dtype == torch.float16
    torch.testing.assert_close(joined["layer3"].float(), state["layer3"], rtol=1e-3, atol=1e-3)


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    output = ("--output", str(tmp_path / "out"))
    error = error_of(gpu_check, *output, "--carried", "no", monkeypatch=monkeypatch, capsys=capsys)
    assert "no: no classes.json: expected a folder that tools.gpu_pack wrote" in error
    error = error_of(gpu_check, *output, "--minutes", "0", monkeypatch=monkeypatch, capsys=capsys)
    assert "minutes must be more than 0" in error
    monkeypatch.setattr(gpu_pack, "download_wheels", lambda folder: None)
    error = error_of(gpu_pack, *output, "--bccd", "no", monkeypatch=monkeypatch, capsys=capsys)
    assert "no: no folder Annotations in it" in error
