"""Training images from shards that are too many to keep: read in sequence, by all workers at once.

The shards are dealt anew to `slots` in each pass over the data, one slot for each worker of each
process: shards are permuted by (seed, pass), and slot i takes numbers i, i + slots, and so on. A
slot that is through with its shards begins its next pass at once. So every image is seen once in a
pass, none is lost or repeated, and all processes take the same number of steps, whatever the sizes
of the shards. Within a shard, blocks of examples are shuffled.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from backbones.common.errors import ImageError, UserError
from backbones.common.images import EncodedImage
from backbones.data.datasets import Cursor, Example, ImageBatch, collate
from backbones.data.sampler import EpochSampler, derive_seed
from backbones.data.shards import Sample, open_stream, read_shard
from backbones.data.sources import parse_class_names
from backbones.data.tar import MAX_LABEL
from backbones.data.transforms import AugmentConfig, train_transform
from backbones.data.workers import WorkerLoader

BLOCK = 512
"""Examples that are shuffled together; encoded, they are some 50 MB of each worker's memory."""

_MAX_BYTES = 1 << 26
"""Of a list of classes."""


class StreamedImages(IterableDataset[ImageBatch]):
    """An endless stream of augmented batches; a loader's workers take turns, batch by batch.

    An image that cannot be read is left out and reported in `skipped`. To continue exactly, keep
    `cursors[batch.cursor["slot"]] = batch.cursor` of the batches that were used, of all processes,
    and give them to a new dataset with as many workers and processes.

    Args:
        shards: files and URLs, as of `expand_braces`.
        num_classes: labels must be less.
        size: side of the images, pixels.
        workers: of the loader in this process.
        block: examples that are shuffled together.
        cursors: by slot; slots that have none begin at the beginning.

    Raises:
        UserError: fewer shards than slots, or cursors of another number of slots.
    """

    def __init__(
        self,
        shards: Sequence[str],
        num_classes: int,
        size: int,
        config: AugmentConfig,
        seed: int,
        *,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        interpolation: str = "bilinear",
        block: int = BLOCK,
        cursors: Mapping[int, Cursor] | None = None,
    ) -> None:
        self.shards, self.num_classes, self.size, self.config = shards, num_classes, size, config
        self.seed, self.batch_size, self.workers = seed, batch_size, workers
        self.rank, self.interpolation, self.block = rank, interpolation, block
        self.slots = world_size * max(workers, 1)
        self.cursors = dict(cursors or {})
        if len(shards) < self.slots:
            raise UserError(
                f"{len(shards)} shards are too few for {self.slots} workers in {world_size} "
                "processes: lower workers, or make more and smaller shards"
            )
        for cursor in self.cursors.values():
            if cursor["slots"] != self.slots:
                raise UserError(
                    f"the stream was read by {cursor['slots']} workers in all and cannot be "
                    f"continued by {self.slots}: give as many workers and processes as before"
                )

    def __iter__(self) -> Iterator[ImageBatch]:
        info = get_worker_info()
        if (info.num_workers if info else 0) != self.workers:
            raise ValueError(f"the loader needs num_workers={self.workers}")
        own = max(self.workers, 1)
        slots = range(self.rank * own, (self.rank + 1) * own)
        # The loader asks its first worker first, so that one takes the slot whose turn it is.
        delivered = [self._cursor(slot)["batches"] for slot in slots]
        first = delivered.index(min(delivered))
        worker = info.id if info else 0
        return self._batches(self._cursor(slots[(first + worker) % own]))

    def _cursor(self, slot: int) -> Cursor:
        start = dict.fromkeys(("batches", "pass", "shard", "block", "offset"), 0)
        return self.cursors.get(slot, {"slot": slot, "slots": self.slots, **start})

    def _batches(self, cursor: Cursor) -> Iterator[ImageBatch]:
        examples: list[Example] = []
        skipped: list[str] = []
        done = cursor["batches"]
        # A slot can find nothing but broken images for ever.
        first_pass = cursor["pass"]
        for sample, seed, place in self._samples(cursor):
            if not examples and place["pass"] > first_pass + 1:
                raise UserError(f"no image of a whole pass can be read, the first is: {skipped[0]}")
            try:
                image = self._decode(sample, seed)
            except ImageError as error:
                skipped.append(str(error))
                continue
            examples.append(Example(image, sample.label, sample.name, []))
            if len(examples) == self.batch_size:
                done += 1
                cursor = {**place, "batches": done}
                yield collate(examples)._replace(skipped=skipped, cursor=cursor)
                examples, skipped, first_pass = [], [], place["pass"]

    def _decode(self, sample: Sample, seed: int) -> Tensor:
        if sample.label >= self.num_classes:
            raise UserError(
                f"{sample.name}: label {sample.label} but there are {self.num_classes} classes"
            )
        image = EncodedImage(sample.data, sample.name)
        return train_transform(image, self.size, self.config, seed, self.interpolation)

    def _samples(self, cursor: Cursor) -> Iterator[tuple[Sample, int, Cursor]]:
        """Encoded examples from the cursor on, with their seeds and the places behind them."""
        slot, offset = cursor["slot"], cursor["offset"]
        shard, block = cursor["shard"], cursor["block"]
        for number in itertools.count(cursor["pass"]):
            order = self._permutation(len(self.shards), number)[slot :: self.slots]
            for position in range(shard, len(order)):
                which = int(order[position])
                samples = itertools.islice(read_shard(self.shards[which]), block, None)
                while chunk := list(itertools.islice(samples, self.block)):
                    # The last key keeps this seed apart from the examples'.
                    shuffled = self._permutation(len(chunk), number, which, block, 0)
                    for index in range(offset, len(chunk)):
                        chosen = int(shuffled[index])
                        place = {"pass": number, "shard": position, "block": block}
                        yield (
                            chunk[chosen],
                            derive_seed(self.seed, number, which, block + chosen),
                            {"slot": slot, "slots": self.slots, **place, "offset": index + 1},
                        )
                    block, offset = block + len(chunk), 0
                    chunk.clear()  # before the next one is read: they are large
                block, offset = 0, 0
            shard = 0

    def _permutation(self, count: int, *keys: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, *keys)).permutation(count)


class StreamedTraining:
    """What `backbones.training.loop.fit` trains on when the images are streamed.

    `stream` makes one that continues from `cursors`, by slot, which `fit` sets when it resumes. The
    sampler's `num_examples` is what is called an epoch.
    """

    def __init__(
        self,
        stream: Callable[[Mapping[int, Cursor]], StreamedImages],
        sampler: EpochSampler,
        pin_memory: bool = False,
    ) -> None:
        self._stream, self.sampler, self._pin_memory = stream, sampler, pin_memory
        self.cursors: Mapping[int, Cursor] = {}

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(streamed_loader(self._stream(self.cursors), self._pin_memory))


def streamed_loader(dataset: StreamedImages, pin_memory: bool = False) -> DataLoader:
    """A loader of whole batches, read by the dataset's `workers` processes (0: in place)."""
    return WorkerLoader(
        dataset,
        batch_size=None,
        num_workers=dataset.workers,
        pin_memory=pin_memory,
    )


def load_class_names(classes: str) -> list[str]:
    """Class names of shards: `classes` is a number of classes, or names a JSON file or its URL.

    Raises:
        UserError: the file cannot be read, or does not hold class names.
    """
    if classes.isdigit():
        if len(classes) > len(str(MAX_LABEL)):
            raise UserError(f"data.classes must be at most {MAX_LABEL + 1}, got {classes[:20]}")
        return [str(label) for label in range(int(classes))]
    with open_stream(classes) as stream:
        return parse_class_names(stream.read(_MAX_BYTES), classes)
