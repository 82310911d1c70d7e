"""What training on a GPU reaches in the time that is left: backbones, and detectors on BCCD."""

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from backbones.benchmarks.gpu.correctness import NARROW, last_checkpoint
from backbones.benchmarks.gpu.findings import Finding, failed
from backbones.benchmarks.gpu.processes import OwnProcess, TurnError
from backbones.benchmarks.gpu.settings import GpuSettings
from backbones.classification.pretraining import PretrainConfig, pretrain
from backbones.common.config import from_dict
from backbones.data.sources import open_split
from backbones.networks.weights import load_weights, save_weights
from backbones.training.step import TrainStep, weights_in
from detect.benchmarks.gpu.detector import detector_config
from detect.config import DetectorConfig
from detect.data.voc import load_voc
from detect.training.train import train_detector

PROBE = 10.0
"""Seconds of training by which the number of epochs is chosen; the second half counts, when the
batches that were read during the first step are used up."""

TAIL = 12.0
"""Seconds to begin again after that, and for what follows the last step."""

CAUTION = 0.85
"""Share of the measured rate that is counted on."""

MOST_EPOCHS = 60

MOST_BYTES = 15 * 2**20
"""Of a file of weights."""


Config = TypeVar("Config", PretrainConfig, DetectorConfig)


def train(settings: GpuSettings) -> Iterator[Finding]:
    """A backbone at full width; then at once a narrow one, and detectors from it and from none."""
    now = time.monotonic()
    left = settings.deadline - now
    if settings.is_gpu and left < 6 * TAIL:
        yield Finding("training", f"only {left:.0f} s left")
        return
    half = now + left / 2
    start = _run(settings, settings.width) / "last.safetensors"
    first = {"backbone": partial(_train_backbone, settings, settings.width, half)}
    then = {
        "BCCD from the backbone": partial(_train_detector, settings, start),
        "BCCD from random weights": partial(_train_detector, settings, None),
    }
    if settings.width != NARROW:
        narrow = partial(_train_backbone, settings, NARROW, settings.deadline)
        then["narrow backbone"] = narrow
    with ExitStack() as running:
        # All made now, as they import for seconds.
        processes = {name: OwnProcess(check) for name, check in (first | then).items()}
        for process in processes.values():
            running.callback(process.close)
        for names, deadline in ((first, half), (then, settings.deadline)):
            for name in names:
                processes[name].begin()
            for name in names:
                try:
                    yield from processes[name].values(max(deadline - time.monotonic(), 0))
                except TurnError as error:
                    yield failed(name, error)


def _train_backbone(settings: GpuSettings, width: float, deadline: float) -> Iterator[Finding]:
    """Train as many epochs as fit; what there is at the deadline is kept too."""
    values: dict[str, Any] = {
        "run": str(_run(settings, width)),
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
        "epochs": MOST_EPOCHS,
        "batch_size": settings.batch_size,
        "workers": settings.workers,
        "device": str(settings.device),
    }
    config = from_dict(PretrainConfig, values)
    name = f"{config.model.variant} at width {width:g}"
    # Two kinds of weights are evaluated, which takes as long as training on so many more images.
    images = len(open_split(settings.images, "train")) + 3000
    epochs = yield from _epochs(settings, config, pretrain, name, images, deadline)
    config = replace(config, epochs=epochs, eval_every=max(1, epochs // 3))
    with suppress(SystemExit):  # what SIGTERM becomes, when a checkpoint is written
        pretrain(config)
    checkpoint = last_checkpoint(config.run)
    yield _reached(name, checkpoint, epochs)
    for key, value in checkpoint["state"]["metrics"].items():
        yield Finding(f"{name}: {key}, last evaluation", value)
    path = Path(config.run) / "last.safetensors"
    state, metadata = (
        load_weights(path) if os.path.exists(path) else (weights_in(checkpoint)["averaged"], {})
    )
    target = settings.out / f"{config.model.variant}_{round(100 * width)}.safetensors"
    paths = save_half(state, metadata, target, MOST_BYTES)
    yield Finding(f"{name}: weights", f"{len(paths)} files", "in half precision")


def _train_detector(settings: GpuSettings, weights: Path | None) -> Iterator[Finding]:
    name = f"BCCD from {'random weights' if weights is None else 'the backbone'}"
    if weights is not None and not os.path.exists(weights):
        yield Finding(name, "there is no backbone", met=False)
        return
    config = detector_config(
        *(settings, settings.work / name.replace(" ", "_"), MOST_EPOCHS),
        width=settings.width,
        weights=None if weights is None else str(weights),
    )
    images = len(load_voc(settings.bccd, "trainval"))
    epochs = yield from _epochs(settings, config, train_detector, name, images, settings.deadline)
    config = replace(config, epochs=epochs)
    scores = {}
    with suppress(SystemExit):
        scores = train_detector(config)["test"]
    yield _reached(name, last_checkpoint(config.run), epochs)
    for key in ("AP", "AP50"):
        if key in scores:
            yield Finding(f"{name}: {key}, {epochs} epochs", float(scores[key]))


def _epochs(
    settings: GpuSettings,
    config: Config,
    train: Callable[[Config], Any],
    name: str,
    images: int,
    deadline: float,
) -> Generator[Finding, None, int]:
    """As many epochs as fit until the deadline, by the rate that training has at this moment."""
    probing = replace(config, run=f"{config.run}_probe")
    seconds = PROBE if settings.is_gpu else 0.0
    rate = config.batch_size * steps_a_second(lambda: train(probing), seconds)
    yield Finding(f"{name}: first steps", rate, "images/s")
    left = deadline - time.monotonic() - TAIL
    return max(1, min(MOST_EPOCHS if settings.is_gpu else 1, int(left * CAUTION * rate / images)))


class _EnoughError(Exception):
    """Ends a training."""


def steps_a_second(train: Callable[[], Any], seconds: float) -> float:
    """Rate of a training of two steps or more in the second half of its first seconds, from the end
    of the first step on, after which it is ended."""
    apply, ends = TrainStep.apply_gradients, []

    def timed(self: TrainStep, lr: float) -> None:
        apply(self, lr)
        ends.append(time.monotonic())
        if len(ends) > 1 and ends[-1] - ends[0] >= seconds:
            raise _EnoughError

    TrainStep.apply_gradients = timed  # type: ignore[method-assign]
    try:
        with suppress(_EnoughError):
            train()
    finally:
        TrainStep.apply_gradients = apply  # type: ignore[method-assign]
    counted = [end for end in ends if end - ends[0] >= seconds / 2]
    if len(counted) < 2:  # the steps are as long as that
        counted = ends
    return (len(counted) - 1) / (counted[-1] - counted[0])


def _run(settings: GpuSettings, width: float) -> Path:
    return settings.work / f"backbone_{width:g}"


def _reached(name: str, checkpoint: Mapping[str, Any], epochs: int) -> Finding:
    steps_an_epoch = -(-checkpoint["num_examples"] // checkpoint["global_batch"])
    reached = checkpoint["state"]["step"] / steps_an_epoch
    return Finding(f"{name}: epochs", reached, "", f"all {epochs}", reached >= epochs)


def save_half(
    state: Mapping[str, Tensor], metadata: Mapping[str, Any], target: Path, most_bytes: int
) -> list[Path]:
    """Write weights as `fp16`, in as many files as it takes, to be carried over a narrow way.

    Together the tensors of the files are those of the network, and each has the metadata. Of
    several files `-1`, `-2`, ... are added to the name.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        half = tensor.half() if tensor.dtype == torch.float32 else tensor
        # Names and metadata are a header in each file.
        if size + half.nbytes > most_bytes - 200_000:
            parts.append({})
            size = 0
        parts[-1][name] = half.contiguous()
        size += half.nbytes
    paths = [target]
    if len(parts) > 1:
        paths = [target.with_stem(f"{target.stem}-{n}") for n in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        save_weights(path, part, metadata)
    return paths
