"""What every dataset gives: samples (boxes and labels of one image) and the pixels behind them."""

import copy
import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from backbones.common.errors import ImageError, UserError
from backbones.common.images import read_image

LONGEST_CLASS_NAME = 200


@dataclass(frozen=True)
class Sample:
    """The annotations of one image with N boxes, of which N may be 0.

    Attributes:
        image_id: unique in the dataset; COCO's own id where there is one.
        path: image file.
        width: of the image in pixels, as annotated.
        height: of the image in pixels, as annotated.
        boxes: `float32 [N, 4]` xyxy in absolute pixels, half-open, inside the image.
        labels: `int64 [N]` in 1..K.
        difficult: `bool [N]`, boxes that VOC's evaluation ignores.
        crowd: `bool [N]`, boxes around groups of objects, COCO's `iscrowd`.
        area: `float32 [N]` in square pixels: of the segment where the dataset has it, else of the
            box. COCO's evaluation divides objects into small, medium and large by it.
    """

    image_id: int
    path: str
    width: int
    height: int
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    area: Tensor


class DetectionDataset:
    """Images with boxes; annotations are in memory, pixels are read on demand.

    The annotations of all images lie in a few long tensors, of which a sample is a copied slice:
    COCO's 860,000 boxes take 30 MB instead of millions of small objects.

    Args:
        class_names: of labels `1..K`, without the background.
        category_ids: `category_ids[k - 1]` is label `k` in the annotation file.
        image_ids: `[I]`, unique.
        paths: `[I]` image files.
        sizes: `[I, 2]` width and height in pixels, as annotated.
        image_index: `[M]` index in `0..I-1` of the image of each box, in any order.
        boxes: `[M, 4]` xyxy, inside their images.
        labels: `[M]` in 1..K.
        difficult: `[M]`; all False where left out.
        crowd: `[M]`; all False where left out.
        area: `[M]` in square pixels; that of the boxes where left out.

    Raises:
        UserError: a class name is empty or cannot be printed.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_ids: Sequence[int],
        paths: Sequence[str],
        sizes: ArrayLike,
        image_index: ArrayLike,
        boxes: ArrayLike,
        labels: ArrayLike,
        difficult: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
        area: ArrayLike | None = None,
    ) -> None:
        self.class_names = list(class_names)
        for label, name in enumerate(self.class_names, start=1):
            check_class_name(name, f"label {label}")
        self.category_ids = list(category_ids)
        self.image_ids = list(image_ids)
        self.paths = list(paths)
        self.sizes = np.asarray(sizes, dtype=np.int32).reshape(-1, 2)
        index = np.asarray(image_index, dtype=np.int64)
        order = np.argsort(index, kind="stable")
        self._starts = np.searchsorted(index[order], np.arange(len(self.image_ids) + 1))

        def column(values: ArrayLike | None, dtype: type) -> Tensor:
            array: np.ndarray = np.zeros(len(index)) if values is None else np.asarray(values)
            return torch.from_numpy(array[order].astype(dtype))

        box_array = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        if area is None:
            sides = box_array[:, 2:] - box_array[:, :2]
            area = sides[:, 0] * sides[:, 1]
        self._columns = {
            "boxes": torch.from_numpy(box_array[order]),
            "labels": column(labels, np.int64),
            "difficult": column(difficult, np.bool_),
            "crowd": column(crowd, np.bool_),
            "area": column(area, np.float32),
        }

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return map(self.sample, range(len(self)))

    def subset(self, indices: np.ndarray) -> "DetectionDataset":
        """Some of the images, `int64 [I']`, in their order, with all classes and the same ids."""
        place = np.full(len(self), -1)
        place[indices] = np.arange(len(indices))
        owners = place[np.repeat(np.arange(len(self)), np.diff(self._starts))]
        keep = owners >= 0
        return DetectionDataset(
            class_names=self.class_names,
            category_ids=self.category_ids,
            image_ids=[self.image_ids[index] for index in indices],
            paths=[self.paths[index] for index in indices],
            sizes=self.sizes[indices],
            image_index=owners[keep],
            **{name: values.numpy()[keep] for name, values in self._columns.items()},
        )

    def relabelled(
        self, class_names: Sequence[str], category_ids: Sequence[int]
    ) -> "DetectionDataset":
        """The same with other labels: `class_names` has all that are here, in any order."""
        label_of = {name: label for label, name in enumerate(class_names, start=1)}
        labels = torch.tensor([0, *(label_of[name] for name in self.class_names)])
        other = copy.copy(self)
        other.class_names, other.category_ids = list(class_names), list(category_ids)
        other._columns = self._columns | {"labels": labels[self._columns["labels"]]}
        return other

    def digest(self) -> str:
        """Of the images' names and sizes and of all annotations: another one for other data."""
        digest = hashlib.blake2b(digest_size=16)
        names = "\0".join(os.path.basename(path) for path in self.paths)
        digest.update(names.encode("utf-8", "surrogateescape"))
        arrays = (self.sizes, self._starts, *(each.numpy() for each in self._columns.values()))
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def objects_by_class(self) -> dict[str, int]:
        """How many objects of each class there are, crowds not counted."""
        labels = self._columns["labels"][~self._columns["crowd"]]
        counts = labels.bincount(minlength=len(self.class_names) + 1)[1:].tolist()
        return dict(zip(self.class_names, counts, strict=True))

    def num_difficult(self) -> int:
        """How many objects are marked `difficult`."""
        return int(self._columns["difficult"].sum())

    def objects(self) -> tuple[np.ndarray, Tensor, Tensor]:
        """Of all M objects, crowds not counted, the index of the image, `int64 [M]`, the box,
        `float32 [M, 4]` xyxy, and the label, `int64 [M]`."""
        owners = np.repeat(np.arange(len(self)), np.diff(self._starts))
        counts = ~self._columns["crowd"]
        boxes, labels = self._columns["boxes"], self._columns["labels"]
        return owners[counts.numpy()], boxes[counts], labels[counts]

    def sample(self, index: int) -> Sample:
        """The annotations of image `index` in `0..len-1`; no pixels are read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        part = slice(self._starts[index], self._starts[index + 1])
        width, height = self.sizes[index].tolist()
        return Sample(
            image_id=self.image_ids[index],
            path=self.paths[index],
            width=width,
            height=height,
            # Cloned, so that changing a sample in place leaves the dataset as it is.
            **{name: values[part].clone() for name, values in self._columns.items()},
        )

    def load_image(self, index: int) -> Tensor:
        """Read image `index` as `uint8` RGB `[3, H, W]`.

        Raises:
            ImageError: the file is missing or broken, or has not the size that the annotations
                give, so that the boxes would not fit it (a rotated copy, another export).
        """
        image = read_image(self.paths[index])
        width, height = self.sizes[index].tolist()
        if image.shape[1:] != (height, width):
            raise ImageError(
                f"{self.paths[index]}: the image has {image.shape[2]}x{image.shape[1]} pixels, "
                f"its annotation says {width}x{height}"
            )
        return image

    def to_coco(self) -> dict[str, Any]:
        """The ground truth as COCO's annotation JSON, with `category_ids` and boxes as xywh.

        Annotations are numbered from 1 (pycocotools takes 0 for "no match"). COCO knows no
        `difficult`; the flag is left out.
        """
        owners = np.repeat(np.asarray(self.image_ids), np.diff(self._starts)).tolist()
        xywh = self._columns["boxes"].double()
        xywh[:, 2:] -= xywh[:, :2]
        rows = zip(
            owners,
            xywh.tolist(),
            self._columns["labels"].tolist(),
            self._columns["crowd"].tolist(),
            self._columns["area"].tolist(),
            strict=True,
        )
        annotations = [
            {
                "id": number,
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image_id, box, label, crowd, area) in enumerate(rows, start=1)
        ]
        return self.to_coco_images() | {"annotations": annotations}

    def to_coco_images(self) -> dict[str, Any]:
        """COCO's `images` and `categories`: what the ids in its results stand for."""
        images = [
            {"id": image_id, "file_name": path, "width": width, "height": height}
            for image_id, path, (width, height) in zip(
                self.image_ids, self.paths, self.sizes.tolist(), strict=True
            )
        ]
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": images, "categories": categories}


def check_class_name(name: str, where: str) -> None:
    """Raise `UserError`, beginning with `where`, for a name that is empty, has more characters than
    a line holds, or cannot be printed."""
    if not name.strip():
        raise UserError(f"{where}: expected the name of a class, got {name!r}")
    # Fonts and pages have no such characters; some libraries end the process.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise UserError(f"{where}: class name {name[:40]!r} has characters that cannot be printed")
    if len(name) > LONGEST_CLASS_NAME:
        raise UserError(
            f"{where}: class name {name[:40]!r}... has {len(name)} characters, expected at most "
            f"{LONGEST_CLASS_NAME}"
        )
