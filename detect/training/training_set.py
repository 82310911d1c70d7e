"""Training examples: images with their boxes, augmented, and batches of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backbones.common.errors import ImageError, UserError
from backbones.data.sampler import derive_seed
from detect.data import DetectionDataset
from detect.data.augmentation import AugmentConfig, augment
from detect.data.window import count_windows
from detect.proposals import Proposals, Proposer


class Example(NamedTuple):
    """One training image."""

    image: Tensor
    """`uint8` RGB `[3, H, W]`."""
    target: dict[str, Tensor]
    """`boxes` `float32 [G, 4]` xyxy in pixels, `labels` `int64 [G]` in `1..K`."""
    proposals: Proposals | None
    """Made before the image was changed."""
    name: str
    """The file it comes from."""
    skipped: list[str]
    """Error messages of unreadable images that this one stands in for."""


class DetectionBatch(NamedTuple):
    """The examples of one step; all lists but `skipped` are parallel."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    proposals: list[Proposals] | None
    names: list[str]
    skipped: list[str]

    def split(self, parts: int) -> "list[DetectionBatch]":
        """The examples in order, in so many batches of one size."""
        size = len(self.names) // parts
        slices = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [
            DetectionBatch(
                images=self.images[part],
                targets=self.targets[part],
                proposals=None if self.proposals is None else self.proposals[part],
                names=self.names[part],
                skipped=self.skipped if part.start == 0 else [],
            )
            for part in slices
        ]


def collate(examples: Sequence[Example]) -> DetectionBatch:
    """Put examples side by side; nothing is stacked, for images differ in size."""
    proposals = [example.proposals for example in examples if example.proposals is not None]
    return DetectionBatch(
        images=[example.image for example in examples],
        targets=[example.target for example in examples],
        proposals=proposals or None,
        names=[example.name for example in examples],
        skipped=[message for example in examples for message in example.skipped],
    )


class TrainingSet(Dataset):
    """Examples of a detection dataset for training, indexed by `(epoch, index)`.

    There are as many of an image as windows cover its area, see `detect.data.window`. What an
    example looks like depends on the seed, the epoch and the index alone, so a resumed run sees the
    same pictures whatever the number of workers. Crowd boxes are left out. An image that cannot be
    read is replaced by the next one and reported in `Example.skipped`.

    Args:
        canvas: longest side of an example in pixels; None shows each image as a whole.
        proposals: from `proposals_for`, augmented along with the boxes.
        proposer: makes proposals of the image as it is read, augmented in the same way.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: AugmentConfig,
        seed: int,
        canvas: int | None = None,
        proposals: Mapping[int, Proposals] | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.canvas = canvas
        windows = [count_windows(height, width, canvas) for width, height in dataset.sizes.tolist()]
        self._images = np.repeat(np.arange(len(dataset)), windows)
        self.proposals = proposals
        self.proposer = proposer

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        _, index = key
        skipped: list[str] = []
        images = len(self.dataset)
        for offset in range(images):
            actual = (int(self._images[index]) + offset) % images
            try:
                image = self.dataset.load_image(actual)
            except ImageError as error:
                skipped.append(str(error))
                continue
            return self._example(actual, image, key, skipped)
        raise UserError(f"none of the {images} training images can be read: {skipped[0]}")

    def _example(
        self, index: int, image: Tensor, key: tuple[int, int], skipped: list[str]
    ) -> Example:
        seed = derive_seed(self.seed, *key)
        sample = self.dataset.sample(index)
        boxes, labels = sample.boxes[~sample.crowd], sample.labels[~sample.crowd]
        given = self._proposals_of(sample.image_id, image)
        if given is None:
            image, boxes, labels = augment(image, boxes, labels, self.config, seed, self.canvas)
            proposals = None
        else:
            # Negative labels carry the proposals' places in the list through the augmentation.
            places = -1 - torch.arange(len(given.boxes))
            image, boxes, labels = augment(
                image,
                torch.cat([boxes, given.boxes]),
                torch.cat([labels, places]),
                self.config,
                seed,
                self.canvas,
            )
            proposals = Proposals(boxes[labels < 0], given.scores[-1 - labels[labels < 0]])
            boxes, labels = boxes[labels > 0], labels[labels > 0]
        target = {"boxes": boxes, "labels": labels}
        return Example(image, target, proposals, sample.path, skipped)

    def _proposals_of(self, image_id: int, image: Tensor) -> Proposals | None:
        if self.proposer is not None:
            return self.proposer([image])[0]
        return None if self.proposals is None else self.proposals[image_id]
