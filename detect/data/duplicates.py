"""Pictures that are in a dataset twice, to the byte or nearly, and files that are not as annotated.

The work is bounded: bytes are compared where two files are equally long, and of each split as many
pictures are looked at as `LOOKED_AT` says.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

import cv2
import numpy as np

from backbones.common.errors import ImageError, ImageTooLargeError
from backbones.common.images import open_image
from backbones.common.regular_files import open_file
from detect.data.sample import DetectionDataset

LOOKED_AT = 1000, 200_000_000
"""Pictures of a split that are looked at, spread over it, and bytes of their files in all."""

SIDE = 16
"""Pixels of a side of the copies that are compared."""

ALIKE = 0.99
"""Correlation of two copies from which pictures are nearly the same."""

FLAT = 3.0
"""Standard deviation of grey levels up to which a copy shows nothing that could be compared."""

Place = tuple[str, str]
"""Split and file of a picture."""


class Looks(NamedTuple):
    """What was seen of some pictures of a split.

    Attributes:
        number: of pictures looked at.
        paths: `[P]`, of those that can be compared.
        copies: `float32 [P, SIDE * SIDE]`, of mean 0 and length 1.
        unreadable: a message each.
        resized: a message each, of pictures whose size is not the annotated one.
    """

    number: int
    paths: list[str]
    copies: np.ndarray
    unreadable: list[str]
    resized: list[str]


def same_files(parts: Mapping[str, DetectionDataset]) -> list[list[Place]]:
    """Groups of files with the same content; a file that several splits name is such a group."""
    by_length: dict[int, list[Place]] = defaultdict(list)
    for split, dataset in parts.items():
        for path in dataset.paths:
            if os.path.isfile(path):
                by_length[os.path.getsize(path)].append((split, path))
    groups = []
    for places in by_length.values():
        by_content: dict[bytes, list[Place]] = defaultdict(list)
        for split, path in places if len(places) > 1 else ():
            with suppress(OSError), open_file(path) as file:  # is named with the unreadable ones
                by_content[hashlib.file_digest(file, "sha256").digest()].append((split, path))
        groups += [same for same in by_content.values() if len(same) > 1]
    return groups


def look_at(dataset: DetectionDataset) -> Looks:
    """See `Looks`; pictures that are too large to be read at once are passed over."""
    most, most_bytes = LOOKED_AT
    lengths = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in dataset.paths]
    count = min(len(dataset), most, int(len(dataset) * most_bytes / max(sum(lengths), 1)) + 1)
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    paths, copies = [], []
    unreadable: list[str] = []
    resized: list[str] = []
    chosen = [index for index in chosen if lengths[index] <= most_bytes]
    for index in chosen:
        path, size = dataset.paths[index], dataset.sizes[index].tolist()
        try:
            image = open_image(path)
            found = [image.width, image.height]
            pixels = image.decode(image.reduction(image.height, image.width, 4 * SIDE))
        except ImageTooLargeError:
            continue
        except ImageError as error:
            unreadable.append(str(error))
            continue
        if found != size:
            resized.append(f"{path}: {found[0]}x{found[1]}, annotated {size[0]}x{size[1]}")
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
        copy = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel()
        if copy.std() > FLAT:
            copy -= copy.mean()
            copies.append(copy / np.linalg.norm(copy))
            paths.append(path)
    return Looks(
        *(len(chosen), paths, np.array(copies, np.float32).reshape(-1, SIDE * SIDE)),
        *(unreadable, resized),
    )


def nearly_same(first: Looks, second: Looks) -> list[tuple[str, str]]:
    """Of each picture of the second split that looks like one of the first, that one and itself."""
    if not first.paths or not second.paths:
        return []
    alike = second.copies @ first.copies.T
    best = alike.argmax(axis=1)
    return [
        (first.paths[best[index]], path)
        for index, path in enumerate(second.paths)
        if alike[index, best[index]] >= ALIKE
    ]
