"""How large objects are: in pixels, and as a proposer sees them at the scale chosen by them."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from detect.data.sample import DetectionDataset

SMALL_OBJECT = 28.0
"""Pixels that the proposer should see of a side of a small object, the smallest twentieth: three
and a half cells of its finest level."""

WHOLE = (256, 640)
"""Shortest and longest longer side, in pixels that the proposer sees, of images that it looks at as
a whole."""

SHIFT = 2.0
"""Ratio of the median sizes of two splits, as the proposer sees objects, from which it is told."""


class ObjectSizes(NamedTuple):
    """Of the M objects in I training images, without crowds.

    Attributes:
        sides: `float64 [M]`, root of an object's area, in pixels.
        longer: `float64 [M]`, longer side of its image in pixels.
        images: `int64 [I, 2]`, height and width in pixels.
        counts: `int64 [I]`, objects in an image.
    """

    sides: np.ndarray
    longer: np.ndarray
    images: np.ndarray
    counts: np.ndarray


def object_sizes(dataset: DetectionDataset) -> ObjectSizes:
    """See `ObjectSizes`; boxes without area count as no objects."""
    owners, boxes, _ = dataset.objects()
    sides = (boxes[:, 2:] - boxes[:, :2]).double().prod(dim=1).sqrt().numpy()
    owners, sides = owners[sides > 0], sides[sides > 0]
    return ObjectSizes(
        sides,
        dataset.sizes.max(axis=1)[owners].astype(float),
        dataset.sizes[:, ::-1],
        np.bincount(owners, minlength=len(dataset)),
    )


def choose_scale(objects: ObjectSizes) -> float | None:
    """Pixels that the proposer sees for one of the image, None to see images as a whole.

    A small object has `SMALL_OBJECT` pixels, or as many as in its image; images are seen as a whole
    where no training image then is longer than the largest that are.
    """
    scale = min(1.0, SMALL_OBJECT / float(np.quantile(objects.sides, 0.05)))
    if objects.images.max() * scale <= WHOLE[1]:
        return None
    return float(f"{scale:.2g}")


def of_other_sizes(parts: Mapping[str, DetectionDataset]) -> Iterator[str]:
    """A sentence for each split whose objects are much larger or smaller than those of the first,
    as the proposer sees them: its images as a whole, or all at one scale."""
    sizes = {name: object_sizes(dataset) for name, dataset in parts.items()}
    first, train = next(iter(sizes.items()))
    medians = {
        name: (np.median(own.sides), np.median(own.sides / own.longer))
        for name, own in sizes.items()
        if len(own.sides)
    }
    if first not in medians:
        return
    seen = int(choose_scale(train) is None)
    for name, median in medians.items():
        ratio = median[seen] / medians[first][seen]
        if max(ratio, 1 / ratio) > SHIFT:
            (side, share), (own_side, own_share) = medians[first], median
            yield (
                f"{name}: objects are {ratio:.2g} times as large as in {first} for the proposer: "
                f"median {own_side:.0f} pixels, {own_share:.1%} of the longer side, against "
                f"{side:.0f} pixels, {share:.1%}"
            )
