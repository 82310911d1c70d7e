"""A tiny real training run: `python tiny_run.py FOLDER SECONDS_A_STEP WORKERS [NUMBER SHARE]`.

With the last two, the process stops in the middle of writing its NUMBER-th checkpoint.
"""

import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.device import Precision
from backbones.common.files import atomic_write
from backbones.data.sampler import EpochSampler, derive_seed, training_loader
from backbones.training import checkpoints
from backbones.training.config import TrainConfig
from backbones.training.loop import TrainingState, fit
from backbones.training.recipe import OptimConfig
from backbones.training.run_folder import RunFolder
from backbones.training.validation import Validation

EXAMPLES, BATCH, EPOCHS = 44, 4, 3
OPTIM = OptimConfig(lr=0.05, schedule="cosine", ema_decay=0.9, warmup_epochs=0.5)

# The same sums in every process that runs this, and no waiting for threads on a busy machine.
torch.set_num_threads(1)


class TinyBatch(NamedTuple):
    images: Tensor
    labels: Tensor
    names: list[str]
    skipped: list[str]

    def split(self, parts: int) -> "list[TinyBatch]":
        size = len(self.names) // parts
        cuts = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [TinyBatch(self.images[c], self.labels[c], self.names[c], []) for c in cuts]


class NoisyShapes(Dataset):
    """The label is which half is bright; noise comes from the key, as augmentation would."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, str]:
        generator = torch.Generator().manual_seed(derive_seed(0, *key))
        image = torch.rand(3, 8, 8, generator=generator)
        label = key[1] % 2
        image[:, :, 4 * label : 4 * label + 4] += 0.5
        return image, label, f"shape_{key[1]}.png"


def collate(examples: list[tuple[Tensor, int, str]]) -> TinyBatch:
    images, labels, names = zip(*examples, strict=True)
    return TinyBatch(torch.stack(images), torch.tensor(labels), list(names), [])


def build_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    )


def cross_entropy(model: nn.Module, batch: TinyBatch) -> dict[str, Tensor]:
    return {"class": nn.functional.cross_entropy(model(batch.images), batch.labels)}


def bad_steps(*steps: int) -> Callable[[nn.Module, TinyBatch], dict[str, Tensor]]:
    """The loss function, which is not a number at the given calls."""
    calls = itertools.count()

    def loss_fn(model: nn.Module, batch: TinyBatch) -> dict[str, Tensor]:
        loss = cross_entropy(model, batch)["class"]
        return {"class": loss * float("nan") if next(calls) in steps else loss}

    return loss_fn


def evaluate(model: nn.Module) -> dict[str, float]:
    """Of several processes each scores its part with the statistics that it has."""
    own = range(distributed.rank(), EXAMPLES, distributed.world_size())
    batch = collate([NoisyShapes()[99, index] for index in own])
    logits = model(batch.images)
    sums = {
        "top1": (logits.argmax(1) == batch.labels).sum().item(),
        "loss": nn.functional.cross_entropy(logits, batch.labels, reduction="sum").item(),
    }
    return {k: v / EXAMPLES for k, v in distributed.sum_over_processes(sums).items()}


def train(
    folder: Path,
    *,
    resume: bool | str = False,
    seconds: float = 0.0,
    workers: int = 0,
    loss_fn=cross_entropy,
    epochs: int = EPOCHS,
    dataset: Dataset | None = None,
    model: nn.Module | None = None,
    precision: Precision = "fp32",
    checkpoint_minutes: float = 0,
    **options,
) -> tuple[nn.Module, TrainingState]:
    model = build_model() if model is None else model
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batch_size = BATCH // ranks["world_size"]
    sampler = EpochSampler(EXAMPLES, batch_size, epochs=epochs, seed=3, **ranks)
    loader = training_loader(dataset or NoisyShapes(), sampler, workers=workers, collate_fn=collate)

    def slow_loss(model: nn.Module, batch: TinyBatch) -> dict[str, Tensor]:
        time.sleep(seconds)
        return loss_fn(model, batch)

    def save(path: Path, model: nn.Module, metrics: dict[str, float]) -> None:
        torch.save(model.state_dict(), path)

    options |= {"precision": precision, "checkpoint_minutes": checkpoint_minutes}
    config = TrainConfig(str(folder), epochs, BATCH, OPTIM, **options)
    validation = Validation(evaluate, evaluate_raw=True, best_metric="top1", save=save)
    with RunFolder(folder, OPTIM, resume=resume) as run:
        state = fit(model, loader, slow_loss, config, run, validation)
    return model, state


def stop_in_checkpoint(number: int, share: float) -> None:
    """SIGSTOP this process when so large a share of its number-th checkpoint is on the disk."""
    written = itertools.count(1)

    @contextmanager
    def stopping_write(path: Path) -> Iterator[IO]:
        with atomic_write(path) as file:
            if next(written) != number:
                yield file
                return
            whole = io.BytesIO()
            yield whole
            file.write(whole.getvalue()[: int(share * whole.tell())])
            file.flush()
            os.kill(os.getpid(), signal.SIGSTOP)

    checkpoints.atomic_write = stopping_write


def main(folder: Path, seconds: float, workers: int) -> None:
    with distributed.processes("cpu"):
        train(folder, resume="auto", seconds=seconds, workers=workers)


if __name__ == "__main__":
    folder, seconds, workers = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4:
        stop_in_checkpoint(int(sys.argv[4]), float(sys.argv[5]))
    command(lambda: main(folder, seconds, workers))()
