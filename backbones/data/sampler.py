"""Which example is seen when, and with which seed: pure functions of (seed, epoch, index, step).

Nothing random in a run depends on what came before, so no generator state has to be saved, and a
run resumed in the middle of an epoch repeats the unbroken one whatever the number of workers.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from backbones.common.errors import UserError
from backbones.data.workers import WorkerLoader


def derive_seed(*keys: int) -> int:
    """A seed in [0, 2**63) that depends on all keys, and looks unrelated for related keys."""
    data = b"".join(key.to_bytes(16, "little", signed=True) for key in keys)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)` keys for a whole run, shuffled anew in each epoch.

    The dataset is indexed by the key, so that its augmentation can be seeded by
    `derive_seed(seed, epoch, index)`. One pass over the sampler is the rest of the run, from
    `start_step` to the end of the last epoch: workers read ahead across epochs. Examples that do
    not fill a batch at the end of an epoch are left out of it, others each time.

    With several processes each takes its `batch_size` examples of the global batch of
    `batch_size * world_size`, so the global batches are those of one process with that batch size.

    Raises:
        UserError: the dataset does not fill one batch.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        *,
        epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or epochs < 1:
            raise UserError(
                f"batch_size and epochs must be at least 1, got {batch_size} and {epochs}"
            )
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = num_examples // self.global_batch
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size {self.global_batch} is larger than the training set, which has "
                f"{num_examples} images: lower batch_size"
            )
        self.start_step = 0

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def global_batch(self) -> int:
        """Examples in a step, of all processes together."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return self.total_steps - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, first = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            order = np.random.default_rng(derive_seed(self.seed, epoch)).permutation(
                self.num_examples
            )
            for batch in range(first, self.steps_per_epoch):
                indices = order[batch * self.global_batch : (batch + 1) * self.global_batch]
                yield [(epoch, int(index)) for index in indices[self.rank :: self.world_size]]
            first = 0


def training_loader(
    dataset: Dataset,
    sampler: EpochSampler,
    *,
    workers: int,
    collate_fn: Callable[[list[Any]], Any],
    pin_memory: bool = False,
) -> DataLoader:
    """A loader whose batches are those of `sampler`, read by `workers` processes (0: in place)."""
    return WorkerLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
    )
