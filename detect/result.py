"""What was found in one image: plain tensors, and what is usually wanted of them."""

import copy
import itertools
import operator
import os
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageShow
import supervision as sv
from torch import Tensor

from backbones.common.errors import MissingPackageError, UserError
from backbones.common.files import make_folder
from backbones.common.images import write_image
from detect.blocks import PartsOfTensor
from detect.evaluation.results import coco_results
from detect.media.crops import class_folders, cut_crops
from detect.media.drawing import draw_detections
from detect.rcnn.postprocess import above_score


class Result:
    """Detections in one image, best first; `len` is their number.

    `result["boxes"]` and `dict(result)` give the tensors as torchvision's detectors do.

    Args:
        detections: `boxes` `float32 [N, 4]` xyxy in pixels, `labels` `int64 [N]` in `1..K`,
            `scores` `float32 [N]` in `[0, 1]`.
        image: `uint8` RGB `[3, H, W]` that they are in; drawn on copies.
        class_names: of labels `1..K`.
        category_ids: of labels `1..K` in the training data.
        name: file that the image was read from, where it was one.
        frame: of a video, the number from 0 and the time in seconds.

    Attributes:
        boxes: see `detections`.
        labels: likewise.
        scores: likewise.
        image: see there.
        name: see there.
        frame: see there.
    """

    def __init__(
        self,
        detections: Mapping[str, Tensor],
        image: Tensor,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        name: str | None = None,
        frame: tuple[int, float] | None = None,
    ) -> None:
        self._tensors = {key: detections[key] for key in ("boxes", "labels", "scores")}
        self.image = image
        self.name, self.frame = name, frame
        self._file = None if name is None else os.path.abspath(name)  # programs change their folder
        self._class_names, self._category_ids = class_names, category_ids

    @property
    def boxes(self) -> Tensor:
        """`float32 [N, 4]` xyxy in pixels."""
        return self._tensors["boxes"]

    @property
    def labels(self) -> Tensor:
        """`int64 [N]` in `1..K`."""
        return self._tensors["labels"]

    @property
    def scores(self) -> Tensor:
        """`float32 [N]` in `[0, 1]`."""
        return self._tensors["scores"]

    @property
    def names(self) -> list[str]:
        """Class of each detection."""
        return [self._class_names[label - 1] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: str) -> Tensor:
        if not isinstance(key, str):
            raise TypeError(
                f"expected result['boxes'], ['labels'] or ['scores'], got [{key!r}]: of one image "
                "there is one result, and a loop over it gives box, class and score of each object"
            )
        return self._tensors[key]

    def __iter__(self) -> Iterator[tuple[list[float], str, float]]:
        """Box, class and score of each."""
        return zip(self.boxes.tolist(), self.names, self.scores.tolist(), strict=True)

    def keys(self) -> KeysView[str]:
        """`boxes`, `labels`, `scores`."""
        return self._tensors.keys()

    def items(self) -> ItemsView[str, Tensor]:
        """Each with its tensor."""
        return self._tensors.items()

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
        best = f", scores {self.scores[-1]:.2f} to {self.scores[0]:.2f}" if len(self) else ""
        _, height, width = self.image.shape
        name = self.name or "image"
        if self.frame is not None:
            name += " frame {}, {:.2f} s,".format(*self.frame)
        return f"Result({name} {width}x{height}: {found}{best})"

    def above(self, score_thresh: float) -> "Result":
        """Those with this score or more."""
        kept = copy.copy(self)
        kept._tensors = above_score(self._tensors, score_thresh)
        return kept

    def plot(self) -> Tensor:
        """A copy of the image with labelled boxes, `uint8` RGB `[3, H, W]`."""
        return draw_detections(self.image.cpu(), self._tensors, self._class_names)

    def _picture(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.plot().permute(1, 2, 0).numpy())

    def _repr_png_(self) -> bytes | None:
        """What a notebook draws of a result that ends a cell."""
        return self._picture()._repr_png_()

    def show(self) -> None:
        """Show `plot()` in a window; a notebook draws a result that ends a cell by itself.

        Raises:
            UserError: no program here shows pictures, as on a server.
        """
        if not PIL.ImageShow.show(self._picture()):
            raise UserError("no program here shows pictures: write one with result.save(file)")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `plot()` as an image file, in the format that the suffix names.

        Raises:
            TypeError: the path is none.
            UserError: it would replace the image that the result is of, or no format has the
                suffix.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"save takes a file's name, got {type(path).__name__}; see plot()")
        both_there = self._file is not None and os.path.exists(path) and os.path.exists(self._file)
        if both_there and os.path.samefile(path, str(self._file)):
            raise UserError(f"{path}: would replace the image itself: save it by another name")
        write_image(path, self.plot())

    def crop(self, folder: str | os.PathLike[str] | None = None) -> list[Tensor]:
        """What is in each box, `uint8` RGB `[3, h, w]`, at least a pixel.

        Args:
            folder: also written there, `CLASS/STEM_NUMBER.jpg` with the first free number, where
                the stem of a frame is `VIDEO_FRAME`; made where missing.
        """
        crops = list(cut_crops(PartsOfTensor(self.image), self.boxes))
        if folder is not None:
            stem = "image" if self.name is None else Path(self.name).stem
            stem += "" if self.frame is None else f"_{self.frame[0]:06d}"
            folders, made = class_folders(self._class_names), make_folder(folder)
            for crop, label in zip(crops, self.labels.tolist(), strict=True):
                own = made / folders[label - 1]
                numbered = (own / f"{stem}_{number}.jpg" for number in itertools.count())
                write_image(next(path for path in numbered if not os.path.exists(path)), crop.cpu())
        return crops

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Entries of a file in COCO's results format, with the training data's category ids.

        Raises:
            TypeError: the id is no whole number, which COCO's are.
        """
        try:
            image_id = operator.index(image_id)
        except TypeError as error:
            raise TypeError(f"image_id: expected a whole number, got {image_id!r}") from error
        return coco_results(self._tensors, image_id, self._category_ids)

    def to_supervision(self) -> sv.Detections:
        """For supervision's annotators, trackers and zones; its class ids count from 0."""
        return sv.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy().astype(np.int64) - 1,
            data={"class_name": np.array(self.names)},
        )

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`: x1, y1, x2, y2, score, label, name.

        Raises:
            MissingPackageError: pandas is not there.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingPackageError("to_pandas needs pandas: pip install pandas") from error
        frame = pd.DataFrame(self.boxes.numpy(), columns=["x1", "y1", "x2", "y2"])
        return frame.assign(score=self.scores.numpy(), label=self.labels.numpy(), name=self.names)
