"""ImageNet-style examples as datasets: augmented for training, central crops for evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from backbones.common.errors import ImageError, UserError
from backbones.common.images import EncodedImage
from backbones.data.multi_crop import CropCount, multi_crop
from backbones.data.sampler import derive_seed
from backbones.data.sources import ImageSource
from backbones.data.transforms import AugmentConfig, eval_transform, train_transform


class Example(NamedTuple):
    """One image, or none where it could not be read."""

    image: Tensor | None
    """`uint8 [3, S, S]`, None in evaluation where the file is unreadable."""
    label: int
    """0..K-1."""
    name: str
    """The file."""
    skipped: list[str]
    """Error messages of unreadable files: those this one stands in for, or its own."""


Cursor = dict[str, int]
"""Where a stream (see `streams`) goes on: `slot` of `slots`, `batches` that the slot has delivered,
and its place: `pass`, number of the `shard` among the slot's, first example of the `block`,
`offset` in its shuffled order. Plain numbers, fit for any checkpoint."""


class ImageBatch(NamedTuple):
    """Images with their labels, their files, and errors of skipped files."""

    images: Tensor
    """`uint8 [N, 3, S, S]`, of several crops `[N, C, 3, S, S]`."""
    labels: Tensor
    """`int64 [N]`."""
    names: list[str]
    skipped: list[str]
    cursor: Cursor | None = None
    """The place behind the last example, where they are streamed."""

    def split(self, parts: int) -> "list[ImageBatch]":
        """The examples in order, in so many batches of one size."""
        size = len(self.names) // parts
        return [
            ImageBatch(
                self.images[start : start + size],
                self.labels[start : start + size],
                self.names[start : start + size],
                self.skipped if start == 0 else [],
            )
            for start in range(0, len(self.names), size)
        ]


def collate(examples: Sequence[Example]) -> ImageBatch:
    """Put examples into a batch, leaving out those without an image."""
    whole = [example for example in examples if example.image is not None]
    # With channels last, as training images are in memory and as convolutions want them.
    images = [example.image.movedim(-3, -1) for example in whole if example.image is not None]
    stacked = torch.stack(images) if images else torch.empty(0, 1, 1, 3, dtype=torch.uint8)
    return ImageBatch(
        stacked.movedim(-1, -3),
        torch.tensor([example.label for example in whole], dtype=torch.int64),
        [example.name for example in whole],
        [message for example in examples for message in example.skipped],
    )


class TrainingImages(Dataset):
    """Augmented images, indexed by `(epoch, index)`; the same key gives the same pixels.

    An image that cannot be read is replaced by the next and reported in `Example.skipped`.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        config: AugmentConfig,
        seed: int,
        interpolation: str = "bilinear",
    ) -> None:
        self.source, self.size, self.config = source, size, config
        self.seed, self.interpolation = seed, interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        skipped: list[str] = []
        for offset in range(len(self)):
            try:
                data, label, name = self.source.read((index + offset) % len(self))
                encoded = EncodedImage(data, name)
                seed = derive_seed(self.seed, epoch, index)
                image = train_transform(encoded, self.size, self.config, seed, self.interpolation)
            except ImageError as error:
                skipped.append(str(error))
                continue
            return Example(image, label, name, skipped)
        raise UserError(f"none of the {len(self)} training images can be read: {skipped[0]}")


class EvaluationImages(Dataset):
    """Crops for evaluation, indexed by number; an unreadable image is an `Example` without one.

    One crop is the central one, `uint8 [3, S, S]`; 12 and 144 are those of `multi_crop`,
    `[C, 3, S, S]`.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        crop_fraction: float,
        interpolation: str = "bilinear",
        crops: CropCount = 1,
    ) -> None:
        self.source, self.size, self.crops = source, size, crops
        self.crop_fraction, self.interpolation = crop_fraction, interpolation

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        try:
            data, label, name = self.source.read(index)
            encoded = EncodedImage(data, name)
            if self.crops == 1:
                image = eval_transform(encoded, self.size, self.crop_fraction, self.interpolation)
            else:
                image = multi_crop(encoded, self.size, self.crops, self.interpolation)
        except ImageError as error:
            return Example(None, 0, "", [str(error)])
        return Example(image, label, name, [])
