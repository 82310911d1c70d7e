"""A detector on a GPU: what it finds beside the CPU, its speed, and what it copies."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from backbones.benchmarks.gpu.correctness import waits_of
from backbones.benchmarks.gpu.findings import Finding
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.benchmarks.timing import time_interleaved
from backbones.common.config import from_dict, read_yaml
from backbones.common.device import upload
from detect.build import build_detector
from detect.checkpoint import load_detector, save_detector
from detect.config import DetectorConfig, ModelConfig
from detect.data.voc import load_voc
from detect.deployment.detector import deploy_detector
from detect.detector import Detector
from detect.training.train import train_detector

CONFIG = Path(__file__).parents[3] / "configs" / "detector" / "bccd_79.yaml"

SURE = 0.5
"""Score from which detections are drawn. Only those have a goal: which of two almost equal boxes
suppresses the other may hang on the last bit, and that shows among faint ones."""


def detector_config(settings: GpuSettings, run: Path, epochs: int, **model: Any) -> DetectorConfig:
    """A training run on BCCD."""
    values = read_yaml(CONFIG)
    values |= {
        "run": str(run),
        "data": values["data"] | {"root": str(settings.bccd)},
        "model": _model(settings) | model,
        # Runs of a hundred steps are over before the default has forgotten the first weights.
        "optim": {"ema_decay": 0.98},
        "epochs": epochs,
        "batch_size": 8 if settings.is_gpu else 2,
        "workers": min(4, settings.workers),
        "device": str(settings.device),
    }
    return from_dict(DetectorConfig, values)


def check_detector(settings: GpuSettings) -> Iterator[Finding]:
    """Detections beside the CPU's, and deployed beside as trained, of a detector of BCCD."""
    weights, kind = _weights(settings)
    yield Finding("detector", kind)
    images = _images(settings, 24 if settings.is_gpu else 1)
    on_cpu = load_detector(weights, "cpu")
    here = load_detector(weights, str(settings.device))
    expected, proposals = on_cpu.detect_tensors(images), on_cpu.propose(images)
    for name, detector, regions, pixels, goal in (
        ("as trained", here, None, 1, 0.99),
        # Where networks look hangs on near ties too; what they say of one place does not.
        ("as trained, the CPU's proposals", here, proposals, 1, 0.99),
        ("deployed in fp32", deploy_detector(here, "fp32"), None, 1, 0.99),
        ("deployed in bf16", deploy_detector(here, "bf16"), None, 4, 0.95),
    ):
        there = [image.to(detector.device) for image in images]
        found = detector.detect_tensors(there, regions)
        for least in (SURE, 0.05):
            share, count = agreement(expected, found, pixels, least)
            yield Finding(
                f"{name}: within {pixels} px, score from {least:g}",
                *(share, f"of {count}", f"{goal:g}" if least == SURE else ""),
                share >= goal if least == SURE else None,
            )


def agreement(
    expected: Sequence[dict[str, Tensor]],
    found: Sequence[dict[str, Tensor]],
    pixels: float,
    least_score: float,
) -> tuple[float, int]:
    """Share of the detections on either side that the other has too, and how many they are.

    No coordinate of a box of the same class may differ by more than `pixels`; what is looked for
    has `least_score`, the other side's may have any.
    """
    same, count = 0, 0
    for pair in zip(expected, found, strict=True):
        for one, other in itertools.permutations(pair):
            sure = one["scores"] >= least_score
            boxes, labels = one["boxes"][sure], one["labels"][sure]
            count += len(boxes)
            if len(boxes) and len(other["boxes"]):
                off = (boxes[:, None] - other["boxes"]).abs().amax(dim=2)
                alike = labels[:, None] == other["labels"]
                same += int(((off <= pixels) & alike).any(dim=1).sum())
    return (same / count if count else 1.0), count


def measure_detector(settings: GpuSettings, width: float, crops: int) -> Iterator[Finding]:
    """Images a second with so many crops of 79 pixels each, and copies an image."""
    detector = deploy_detector(_untrained(settings, width, crops), "bf16")
    rates = {}
    for count in (1, 8, 32) if settings.is_gpu else (1,):
        images = _images(settings, count)
        looked = sum(len(one.boxes) for one in detector.propose(images)) / count
        calls = {"": lambda images=images: detector.detect(images)}
        taken = time_interleaved(calls, settings.repeats, settings.device)[""]
        rates[count] = count / taken
        yield Finding(f"{count} at once, {looked:.0f} crops each", rates[count], "images/s")
    if not settings.is_gpu:
        return
    images = _images(settings, 8)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(2):
            detector.detect(images)
        torch.cuda.synchronize()
    kinds: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.key.startswith("Memcpy HtoD") or event.key.startswith("Memcpy DtoH"):
            kinds[event.key.split(" (")[0]] += event.count
        if event.device_type.name != "CPU":
            times[event.key[:60]] += event.self_device_time_total
    for kind in ("Memcpy HtoD", "Memcpy DtoH"):
        yield Finding(f"{kind} an image", kinds[kind] / 16)
    each = sum(kinds.values()) / 16
    yield Finding("copies an image, 8 at once", each, "", "2 at most", each <= 2)
    for key, microseconds in times.most_common(6):
        yield Finding(f"of 8 images: {key}"[:58], microseconds / 2000, "ms")


def measure_detector_step(settings: GpuSettings) -> Iterator[Finding]:
    """A training step on 8 images: images a second, and waits."""
    if not settings.is_gpu:
        yield Finding("waiting for the device in a detector's step", "not on this device")
        return
    detector = _untrained(settings, 1.0, 100)
    model = detector.model.train()
    images = [upload(image, settings.device) for image in _images(settings, 8)]
    dataset = load_voc(settings.bccd, "test")
    samples = [dataset.sample(index) for index in range(8)]
    targets = [{"boxes": one.boxes, "labels": one.labels} for one in samples]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            losses = model(images, targets)
        sum(losses.values()).backward()

    for _ in range(3):
        step()
    waits = Counter(waits_of(step))
    yield Finding("waits for the GPU in a step of 8 images", float(sum(waits.values())))
    taken = time_interleaved({"": step}, settings.repeats, settings.device)[""]
    yield Finding("forward and backward at width 1, 8 images", 8 / taken, "images/s")


def _model(settings: GpuSettings) -> dict[str, Any]:
    model: dict[str, Any] = read_yaml(CONFIG)["model"]
    if not settings.is_gpu:
        model |= {"variant": settings.variants[0]}
        model["learned"]["tile_size"] = 96
        model["rcnn"]["crop_size"] = 79
    return model


def _untrained(settings: GpuSettings, width: float, crops: int) -> Detector:
    """A detector that looks at all that it may."""
    torch.manual_seed(0)
    config = from_dict(
        ModelConfig,
        _model(settings)
        | {"width": width, "proposals_per_image": crops, "proposal_score_thresh": 0.0}
        | {"rcnn": {"score_thresh": 0.05}},
    )
    model = build_detector(config, 3).to(settings.device).eval()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Detector(model, ["a", "b", "c"], [1, 2, 3])


def _weights(settings: GpuSettings) -> tuple[Path, str]:
    """A detector that is good enough for its detections to be compared."""
    run = settings.work / "small_detector"
    if not settings.is_gpu:
        config = from_dict(ModelConfig, _model(settings))
        torch.manual_seed(0)
        save_detector(
            *(settings.work / "untrained.safetensors", build_detector(config, 3), config),
            *(["a", "b", "c"], [1, 2, 3], {}),
        )
        return settings.work / "untrained.safetensors", "untrained"
    trained = train_detector(detector_config(settings, run, epochs=4))
    return trained["weights"], f"AP {trained['test']['AP']:.3f} after 4 epochs"


def _images(settings: GpuSettings, count: int) -> list[Tensor]:
    """On the CPU."""
    dataset = load_voc(settings.bccd, "test")
    images = [dataset.load_image(index) for index in range(min(count, len(dataset)))]
    return [images[index % len(images)] for index in range(count)]
