"""What a dataset holds, split by split, what was dropped of it, and the usual mistakes in it."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from logging.handlers import BufferingHandler
from typing import NamedTuple

import numpy as np

from detect.data.duplicates import Looks, look_at, nearly_same, same_files
from detect.data.layouts import first_of
from detect.data.object_sizes import of_other_sizes
from detect.data.sample import DetectionDataset

SIZES = (("small", 0, 32), ("medium", 32, 96), ("large", 96, np.inf))
"""COCO's, by the root of a box's area in pixels: name, from, below."""

MANY = 8
"""Classes that are named in a line."""

logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What a split holds, crowds not counted.

    Attributes:
        images: number of them.
        without: images without objects.
        classes: objects of each class.
        sizes: objects of each of `SIZES`.
        sides: of each class the 5, 50 and 95 % quantiles of the root of its boxes' areas in pixels,
            None without boxes.
    """

    images: int
    without: int
    classes: dict[str, int]
    sizes: dict[str, int]
    sides: dict[str, list[float] | None]

    @property
    def boxes(self) -> int:
        """Objects of all classes."""
        return sum(self.classes.values())


class Account(NamedTuple):
    """What a dataset holds.

    Attributes:
        splits: by name.
        notes: what was dropped, put right or made in reading it, a sentence each.
        mistakes: what else is likely wrong, a sentence each.
        unreadable: pictures among those that were read that could not be.
    """

    splits: dict[str, Counts]
    notes: list[str]
    mistakes: list[str]
    unreadable: int

    @property
    def class_names(self) -> list[str]:
        """Those of all splits; categories of COCO may stand in the file of one alone."""
        return _class_names(self.splits)


@contextmanager
def held_notes() -> Iterator[list[str]]:
    """Hold back what reading a dataset says, to be told with the rest of the account.

    The list is filled when the block ends; what was said before an error is said before it.
    """
    of_data = logging.getLogger("detect.data")
    handler, former = BufferingHandler(10**9), of_data.propagate
    of_data.addHandler(handler)
    of_data.propagate = False
    notes: list[str] = []
    try:
        yield notes
        notes += [record.getMessage() for record in handler.buffer]
        handler.buffer.clear()
    finally:
        of_data.removeHandler(handler)
        of_data.propagate = former
        for record in handler.buffer:
            of_data.handle(record)


def take_account(parts: Mapping[str, DetectionDataset], notes: Sequence[str]) -> Account:
    """Count and check the splits of a dataset, by name; some of their pictures are read.

    Args:
        parts: the splits.
        notes: from `held_notes`.
    """
    splits = {name: _count(dataset) for name, dataset in parts.items()}
    looks = {name: look_at(dataset) for name, dataset in parts.items()}
    difficult = {name: dataset.num_difficult() for name, dataset in parts.items()}
    if any(difficult.values()):
        listed = ", ".join(f"{name} {count}" for name, count in difficult.items())
        notes = [*notes, f"boxes marked difficult, which VOC's mAP leaves out: {listed}"]
    mistakes = [*_of_classes(splits), *of_other_sizes(parts), *_of_pictures(parts, looks)]
    unreadable = sum(len(look.unreadable) for look in looks.values())
    return Account(splits, list(dict.fromkeys(notes)), mistakes, unreadable)


def log_account(account: Account) -> None:
    """Say it in a few lines."""
    width = max(map(len, account.splits))
    for name, counts in account.splits.items():
        classes = sorted(counts.classes.items(), key=lambda item: -item[1])
        listed = first_of([f"{name} {count}" for name, count in classes], MANY)
        sizes = ", ".join(f"{size} {count}" for size, count in counts.sizes.items())
        logger.info(
            "%s %d images, %d without objects, %d boxes (%s): %s",
            *(f"{name}:".ljust(width + 1), counts.images, counts.without, counts.boxes),
            *(sizes, listed),
        )
    for note in account.notes:
        logger.info("%s", note)
    for mistake in account.mistakes:
        logger.warning("%s", mistake)


def _count(dataset: DetectionDataset) -> Counts:
    owners, boxes, labels = dataset.objects()
    sides = (boxes[:, 2:] - boxes[:, :2]).double().prod(dim=1).sqrt().numpy()
    quantiles: dict[str, list[float] | None] = {}
    for label, name in enumerate(dataset.class_names, start=1):
        own = sides[labels.numpy() == label]
        quantiles[name] = np.quantile(own, [0.05, 0.5, 0.95]).tolist() if len(own) else None
    return Counts(
        len(dataset),
        len(dataset) - len(np.unique(owners)),
        dataset.objects_by_class(),
        {name: int(((sides >= low) & (sides < high)).sum()) for name, low, high in SIZES},
        quantiles,
    )


def _class_names(splits: Mapping[str, Counts]) -> list[str]:
    return list(dict.fromkeys(name for counts in splits.values() for name in counts.classes))


def _of_classes(splits: Mapping[str, Counts]) -> Iterator[str]:
    """Of classes that a split has no object of: often a misspelt name."""
    without: dict[str, list[str]] = {}
    for name in _class_names(splits):
        missing = [split for split, counts in splits.items() if not counts.classes.get(name)]
        if missing:
            where = "any split" if len(missing) == len(splits) > 1 else " and ".join(missing)
            without.setdefault(where, []).append(name)
    for where, names in without.items():
        yield f"classes without an object in {where}: {first_of(names, MANY)}"
    for split, counts in splits.items() if "train" in splits else ():
        known = splits["train"].classes
        if unknown := [
            name for name, count in counts.classes.items() if count and name not in known
        ]:
            yield (
                f"classes of {split} that train lacks, for which training refuses it: "
                f"{first_of(unknown, MANY)}"
            )


def _of_pictures(
    parts: Mapping[str, DetectionDataset], looks: Mapping[str, Looks]
) -> Iterator[str]:
    """Of files that are there twice, or are not what the annotations say."""
    same = same_files(parts)
    across = [group for group in same if len(dict(group)) > 1]
    within = [group for group in same if len(dict(group)) == 1]
    for groups, where in (
        (across, "in several splits, so that scores are too good"),
        (within, "twice in a split"),
    ):
        if groups:
            first = " and ".join(f"{os.path.basename(path)} ({split})" for split, path in groups[0])
            yield f"the same picture {where}: {len(groups)}, first {first}"
    known = {path for group in across for _, path in group}
    for first_split, second in combinations(parts, 2):
        pairs = nearly_same(looks[first_split], looks[second])
        pairs = [pair for pair in pairs if pair[1] not in known]
        if pairs:
            one, other = map(os.path.basename, pairs[0])
            yield (
                f"nearly the same picture in {first_split} and {second}: {len(pairs)} of "
                f"{looks[second].number} looked at, first {one} and {other}"
            )
    for name, look in looks.items():
        for messages, what in (
            (look.unreadable, "cannot be read"),
            (look.resized, "have another size than annotated"),
        ):
            if messages:
                yield f"{name}: {len(messages)} of {look.number} images {what}, first {messages[0]}"
