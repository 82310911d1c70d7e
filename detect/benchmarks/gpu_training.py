"""What training on a GPU reaches in the time that is left: a backbone, and detectors on BCCD."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backbones.benchmarks.findings import Finding, Report
from backbones.benchmarks.gpu_settings import GpuSettings
from backbones.benchmarks.half_weights import save_half
from backbones.benchmarks.processes import OwnProcess
from backbones.classification.pretraining import PretrainConfig, pretrain
from backbones.common.config import from_dict
from backbones.data.sources import open_split
from detect.benchmarks.gpu_checks import detector_config
from detect.config import DetectorConfig
from detect.training.train import train_detector

START = 15.0
"""Seconds from the start of a process to its first step, and for what follows the last."""

SHARED = 0.45
"""Speed of a training that shares the GPU with two others."""

MOST_BYTES = 15 * 2**20
"""Of a file of weights."""

NARROW = 0.25

logger = logging.getLogger(__name__)


def train(settings: GpuSettings, report: Report) -> Iterator[Finding]:
    """A backbone at full width; then beside each other a narrow one, and detectors of BCCD.

    Args:
        settings: `deadline` says when it should be over.
        report: has the rates that were measured.
    """
    images = len(open_split(settings.images, "train"))
    left = settings.deadline - time.monotonic()
    if left < 2 * START and settings.is_gpu:
        yield Finding("training", f"only {left:.0f} s left")
        return
    wide = _backbone_config(
        settings, settings.width, _epochs(report, images, settings.width, 0.4 * left)
    )
    process = OwnProcess(_pretrain, wide)
    yield from _backbone_findings(settings, wide, process, 0.55 * left)
    start = Path(wide.run) / "last.safetensors"

    left = settings.deadline - time.monotonic()
    epochs = _epochs(report, images, NARROW, left, SHARED) if settings.is_gpu else 1
    narrow = _backbone_config(settings, NARROW, epochs, "narrow")
    epochs = _detector_epochs(report, left) if settings.is_gpu else 1
    detectors: dict[str, str | None] = {"from random weights": None}
    if start.exists():
        detectors = {"from the backbone": str(start), **detectors}
    configs = {
        name: detector_config(
            *(settings, settings.work / f"bccd_{number}", epochs),
            width=settings.width,
            weights=weights,
        )
        for number, (name, weights) in enumerate(detectors.items())
    }
    small = OwnProcess(_pretrain, narrow)
    running = {name: OwnProcess(_train_detector, config) for name, config in configs.items()}
    for name, process in running.items():
        try:
            scores, seconds = process.result(settings.deadline - time.monotonic())
        except RuntimeError as error:
            yield _failed(f"BCCD {name}", error)
            continue
        for key in ("AP", "AP50"):
            yield Finding(f"BCCD {name}: {key}, {epochs} epochs", float(scores[key]))
        yield Finding(f"BCCD {name}: took", seconds, "s")
    left = max(settings.deadline - time.monotonic(), 5)
    yield from _backbone_findings(settings, narrow, small, left)


def _backbone_config(
    settings: GpuSettings, width: float, epochs: int, name: str = "wide"
) -> PretrainConfig:
    values: dict[str, Any] = {
        "run": str(settings.work / f"backbone_{name}"),
        "data": {
            "root": str(settings.images),
            "augment": {"min_area": 0.3, "color_jitter": 0.3},
            "max_classes": None if settings.is_gpu else 2,
        },
        "model": {"variant": settings.variants[0], "width": width, "aux": "none", "dropout": 0.0},
        "optim": {
            **{"optimizer": "muon", "lr": 0.008, "weight_decay": 0.05, "schedule": "cosine"},
            **{"warmup_epochs": 0.5, "ema_decay": 0.99, "clip_grad": 10.0},
        },
        "epochs": epochs,
        "batch_size": settings.batch_size,
        "workers": settings.workers,
        "eval_every": max(1, epochs // 3),
        "device": str(settings.device),
    }
    return from_dict(PretrainConfig, values)


def _backbone_findings(
    settings: GpuSettings, config: PretrainConfig, process: OwnProcess, seconds: float
) -> Iterator[Finding]:
    name = f"{config.model.variant} at width {config.model.width:g}"
    try:
        metrics, took = process.result(seconds)
        yield Finding(f"{name}: top-1, {config.epochs} epochs", metrics["top1"])
        yield Finding(f"{name}: top-5", metrics["top5"])
        yield Finding(f"{name}: took", took, "s")
    except RuntimeError as error:
        yield _failed(name, error)
    weights = Path(config.run) / "last.safetensors"
    if weights.exists():
        target = (
            settings.out / f"{config.model.variant}_{round(100 * config.model.width)}.safetensors"
        )
        paths = save_half(weights, target, MOST_BYTES)
        yield Finding(f"{name}: weights", f"{len(paths)} files", "in half precision")


def _pretrain(config: PretrainConfig) -> tuple[dict[str, float], float]:
    began = time.monotonic()
    return dict(pretrain(config).metrics), time.monotonic() - began


def _train_detector(config: DetectorConfig) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    return train_detector(config)["test"], time.monotonic() - began


def _epochs(report: Report, images: int, width: float, seconds: float, share: float = 0.9) -> int:
    """As many as fit, by what was measured; a GPU that was not measured is taken to be slow."""
    step = _measured(report, f"the trainer's step at width {width:g}") or 2000.0
    loaded = _measured(report, "input pipeline,") or 4000.0
    rate = share * min(step, loaded)
    # An evaluation of both kinds of weights takes about as long as a few thousand images.
    return max(1, min(60, int((seconds - START) * rate / (images + 3000))))


def _detector_epochs(report: Report, seconds: float) -> int:
    rate = _measured(report, "forward and backward at width 1, 8 images") or 60.0
    return max(1, min(60, int((seconds - 2 * START) * SHARED * rate / 292)))


def _measured(report: Report, name: str) -> float | None:
    for found in report.parts.values():
        for finding in found:
            if finding.name.startswith(name) and isinstance(finding.value, float):
                return finding.value
    return None


def _failed(name: str, error: RuntimeError) -> Finding:
    logger.error("%s: %s", name, error)
    return Finding(name, f"FAILED: {str(error).partition(chr(10))[0]}"[:160], met=False)
