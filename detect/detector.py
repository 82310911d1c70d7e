"""A trained detector in use: on one image, on some, on a stream of them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from backbones.common.device import upload
from backbones.common.images import read_image
from detect.proposals import Proposals
from detect.rcnn.checks import check_image
from detect.rcnn.model import RCNN
from detect.streaming import work_through

Image = str | os.PathLike[str] | np.ndarray | Tensor | PIL.Image.Image
"""A file, an `uint8` RGB array `[H, W, 3]`, an `uint8` RGB tensor `[3, H, W]`, or Pillow's."""

ONE_IMAGE = (str, os.PathLike, np.ndarray, Tensor, PIL.Image.Image)

Key = TypeVar("Key")


class Detector:
    """A detector ready for use: call it with an image.

    Attributes:
        model: the `RCNN` in eval mode.
        class_names: `class_names[label - 1]` names a label.
        category_ids: `category_ids[label - 1]` is the category id of the training data, for
            results in COCO format.
        metadata: everything the checkpoint says: config, training, metrics, package version.
    """

    def __init__(
        self,
        model: RCNN,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.metadata = dict(metadata or {})

    @property
    def device(self) -> torch.device:
        """Where the model is, and images go."""
        return self.model.cls_score.weight.device

    @torch.inference_mode()
    def __call__(self, image: Image, proposals: Proposals | None = None) -> dict[str, Tensor]:
        """Detect objects in one image.

        Args:
            image: a file, an `uint8` RGB array `[H, W, 3]`, an `uint8` RGB tensor `[3, H, W]`, or
                an image of Pillow.
            proposals: regions to look at, needed where the detector has no proposer.

        Returns:
            `boxes` `float32 [N, 4]` xyxy in pixels, `labels` `int64 [N]` in `1..K`, `scores`
            `float32 [N]` in `[0, 1]`, best first, on the CPU.

        Raises:
            ImageError: the file cannot be read.
            ValueError: an array or tensor of another shape or dtype.
        """
        return self.detect([image], None if proposals is None else [proposals])[0]

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect objects in some images: the same as one by one, in less time.

        Crops of several images share a batch. A handful of images is enough; all are in memory.

        Args:
            images: a list of what `__call__` takes; sizes may differ, neighbours of one size are
                faster.
            proposals: of each image, as in `__call__`.

        Returns:
            One dict an image, as from `__call__`.

        Raises:
            As `__call__`.
        """
        if isinstance(images, ONE_IMAGE):
            raise ValueError("detect takes a list of images: call the detector itself with one")
        if not images:
            return []
        return self.model.detect([self.as_tensor(image) for image in images], proposals)

    def stream(self, images: Iterable[Image]) -> Iterator[dict[str, Tensor]]:
        """Detect objects in any number of images, faster than batch by batch.

        The next images are read meanwhile, and a CPU works on several batches at a time. The first
        result comes when some batches of 8 images for each of its threads have been read, which
        are in memory: for frames as they happen, call the detector itself.

        Args:
            images: of what `__call__` takes; they may come one by one.

        Returns:
            One dict an image, as from `__call__`, in their order.

        Raises:
            ValueError: at once, for what is no series of images, or without a proposer.
            ImageError, ValueError: as `__call__`, after what was found in the images before.
        """
        if isinstance(images, ONE_IMAGE):
            raise ValueError("stream takes a series of images: call the detector itself with one")
        self.model.require_proposer()

        count = len(images) if isinstance(images, Sequence) else None
        return (found for _, _, found in self.detect_named(self._read(images), count))

    def _read(self, images: Iterable[Image]) -> Iterator[tuple[int, Tensor]]:
        """Checked images, which stay as they are when the caller's array gets the next one."""
        for i, image in enumerate(images):
            tensor = self.as_tensor(image)
            check_image(tensor, f"images[{i}]")
            yield i, tensor.clone() if isinstance(image, np.ndarray | Tensor) else tensor

    def detect_named(
        self, images: Iterable[tuple[Key, Tensor]], count: int | None = None
    ) -> Iterator[tuple[Key, Tensor, dict[str, Tensor]]]:
        """As `stream`, of tensors that each have something that names them, which comes out too.

        Args:
            images: `uint8` RGB `[3, H, W]`, read in another thread; none may change afterwards.
            count: how many there are, where it is known.
        """

        def work(batch: list[tuple[Key, Tensor]]) -> list[tuple[Key, Tensor, dict[str, Tensor]]]:
            found = self.detect([image for _, image in batch])
            return [(*named, detections) for named, detections in zip(batch, found, strict=True)]

        for batch in work_through(images, work, self.device, count):
            yield from batch

    @torch.inference_mode()
    def propose(self, images: Sequence[Image]) -> list[Proposals]:
        """Where the detector looks in each image; each region costs a crop. On the CPU.

        Raises:
            ImageError: a file cannot be read.
            ValueError: an array or tensor of another shape or dtype, or no proposer.
        """
        return self.model.propose([self.as_tensor(image) for image in images])

    def as_tensor(self, image: Image) -> Tensor:
        """An image as `uint8` RGB `[3, H, W]`, on the detector's device; raises as `__call__`."""
        if isinstance(image, PIL.Image.Image):
            image = np.asarray(image.convert("RGB"))
        if isinstance(image, str | os.PathLike):
            image = read_image(image)
        elif isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ValueError(
                    f"an array must be uint8 RGB [H, W, 3], got {image.dtype} {list(image.shape)}"
                )
            image = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)
        if not isinstance(image, Tensor):
            raise ValueError(
                "an image must be a file, an array, a tensor or an image of Pillow, "
                f"got {type(image).__name__}"
            )
        return upload(image, self.device)
