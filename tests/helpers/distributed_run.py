"""One of the processes of `test_distributed.py`: `torchrun distributed_run.py FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from backbones import create_backbone
from backbones.classification.evaluation import evaluate_classifier
from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.errors import UserError
from backbones.data.datasets import Example, ImageBatch, collate
from backbones.data.sampler import EpochSampler, derive_seed, training_loader
from backbones.training.config import TrainConfig
from backbones.training.loop import fit
from backbones.training.recipe import OptimConfig, classification_loss
from backbones.training.run_folder import RunFolder
from backbones.training.step import StepConfig, TrainStep
from backbones.training.validation import Validation

EXAMPLES, GLOBAL_BATCH, STEPS = 83, 8, 10
OPTIM = OptimConfig(lr=0.01, clip_grad=1.0, ema_decay=0.9)

# The same sums in every process that runs this, and no waiting for threads on a busy machine.
torch.set_num_threads(1)


class Noise(Dataset):
    """Random pictures and labels, from the key alone; the epoch may be left out."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, key: tuple[int, int]) -> Example:
        random = np.random.default_rng(derive_seed(*key))
        pixels = random.integers(0, 256, (3, 75, 75), dtype=np.uint8)
        skipped = [f"{key[1]}.jpg: broken"] if key[1] % 8 == 0 else []
        return Example(torch.from_numpy(pixels), int(random.integers(3)), f"{key[1]}.png", skipped)


def train(folder: Path, accumulate: int = 1) -> nn.Module:
    torch.manual_seed(0)
    model = create_backbone("inception_v3_79_naive", num_classes=3, width=0.25)
    # In eval mode the statistics are fixed, and what the processes see apart adds up.
    model.eval()
    model.train = lambda mode=True: model
    rank, world_size = distributed.rank(), distributed.world_size()
    sampler = EpochSampler(
        EXAMPLES, GLOBAL_BATCH // world_size, epochs=1, seed=0, rank=rank, world_size=world_size
    )
    loader = training_loader(Noise(), sampler, workers=0, collate_fn=collate)

    def classify(network: nn.Module, images: Tensor) -> Tensor:
        return network(images / 127.5 - 1)

    def loss_fn(network: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        return classification_loss(classify(network, batch.images), batch.labels)

    def evaluate(network: nn.Module) -> dict[str, float]:
        own = [Noise()[7, index] for index in range(rank, EXAMPLES, world_size)]
        batches = [collate(own[start : start + 9]) for start in range(0, len(own), 9)]
        return evaluate_classifier(lambda images: classify(network, images), batches)

    def save(path: Path, network: nn.Module, metrics: dict[str, float]) -> None:
        torch.save({"state": network.state_dict(), "metrics": metrics}, path)

    step = StepConfig(accumulate=accumulate)
    config = TrainConfig(str(folder), 1, GLOBAL_BATCH, OPTIM, precision="fp32", step=step)
    with RunFolder(folder, OPTIM) as run:
        fit(model, loader, loss_fn, config, run, Validation(evaluate, save=save))
    return model


def check_statistics(rank: int) -> None:
    """Two steps in training mode against the formula, with what each of two processes saw."""
    norm, frozen = nn.BatchNorm2d(3, momentum=0.1), nn.BatchNorm2d(3)
    frozen.running_mean += torch.rand(3)
    model = nn.Sequential(norm, frozen, nn.Conv2d(3, 1, 1))
    model.train()
    frozen.eval()
    kept = frozen.running_mean.clone()
    draws = np.random.default_rng(0).normal(size=(2, 2, 4, 3, 5, 5))  # step, rank, images
    draws[:, 1] = 3 * draws[:, 1] + 2

    def loss_fn(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        return {"output": network(images).mean()}

    train_step = TrainStep(model, loss_fn, OPTIM, StepConfig(), "fp32", seed=0)
    mean, var = np.zeros(3), np.ones(3)
    means, variances = [], []
    for step, images in enumerate(draws):
        train_step.accumulate_gradients(torch.from_numpy(images[rank]).float(), step)  # type: ignore[arg-type]
        train_step.apply_gradients(0.1)
        mean = 0.9 * mean + 0.1 * images.mean((1, 3, 4)).mean(0)
        var = 0.9 * var + 0.1 * images.var((1, 3, 4), ddof=1).mean(0)
        means.append(mean)
        variances.append(var)
    averaged = train_step.ema.module[0]
    # The first update copies, the second mixes by 1 - (1 + 1) / (10 + 1).
    weights = [2 / 11, 9 / 11]
    for buffer, expected in (
        (norm.running_mean, mean),
        (norm.running_var, var),
        (averaged.running_mean, np.average(means, 0, weights)),
        (averaged.running_var, np.average(variances, 0, weights)),
    ):
        np.testing.assert_allclose(buffer.numpy(), expected, rtol=1e-5, atol=1e-6)
        first, second = distributed.gather(buffer)
        assert torch.equal(first, second)
    assert torch.equal(frozen.running_mean, kept)
    assert int(norm.num_batches_tracked) == 2


def main(folder: Path) -> None:
    with distributed.processes("cpu"):
        rank = distributed.rank()
        assert distributed.world_size() == 2
        assert distributed.is_main() == (rank == 0)
        assert distributed.sum_over_processes({"a": 1 + rank, "b": 2**40 + rank}) == {
            "a": 3,
            "b": 2**41 + 1,
        }
        assert distributed.gather(["x"] * rank) == [[], ["x"]]
        assert distributed.call_on_main(lambda: rank + 5) == 5
        with pytest.raises(UserError, match="refused by 0"):
            distributed.call_on_main(lambda: refuse(rank))
        with pytest.raises(UserError, match="the processes were given different configurations"):
            RunFolder(folder, StepConfig(accumulate=1 + rank))
        check_statistics(rank)
        train(folder)
    assert distributed.is_main() == (rank == 0)


def refuse(rank: int) -> None:
    raise UserError(f"refused by {rank}")


if __name__ == "__main__":
    command(lambda: main(Path(sys.argv[1])))()
