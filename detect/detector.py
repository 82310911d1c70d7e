"""A trained detector in use: on one image, on some, on a stream of them."""

import difflib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from backbones.common.device import upload
from backbones.common.errors import ImageError, UserError
from detect.blocks import LARGE_PIXELS, DetectBlocks, Parts, PartsOfTensor, detect_in_blocks
from detect.hub import push_weights
from detect.media.given import (
    Folder,
    Image,
    check_several,
    file_name,
    image_files,
    is_folder,
    is_video,
    to_tensor,
)
from detect.proposals import LearnedProposer, Proposals
from detect.rcnn.checks import check_image, shrinking
from detect.rcnn.model import RCNN
from detect.rcnn.postprocess import above_score, check_score
from detect.result import Result
from detect.streaming import work_through

Key = TypeVar("Key")
Origin = tuple[str | None, tuple[int, float] | None]
"""Name of a file, and number and seconds of a frame in it."""

_ONE = " (for one image call the detector itself)"

logger = logging.getLogger(__name__)


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
        self._warned = False

    def __repr__(self) -> str:
        names = self.class_names
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        return f"Detector({self.model.describe()} on {self.device}, {len(names)} classes: {listed})"

    @property
    def device(self) -> torch.device:
        """Where the model is, and images go."""
        return self.model.device

    @property
    def best_score_thresh(self) -> float:
        """The score from which detections had the best F1 on validation data; 0.5 without these."""
        return float((self.metadata.get("metrics") or {}).get("score_thresh", 0.5))

    def keep_classes(self, names: Collection[str]) -> None:
        """Detect objects of these classes alone; those of others neither suppress nor count.

        Raises:
            UserError: there is no such class.
        """
        if isinstance(names, str) or not isinstance(names, Collection):
            raise UserError(f"classes: expected a list of names, got {names!r}")
        known = self.class_names
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name).lower(), map(str.lower, known), 1)
                meant = [one for one in known if one.lower() in near]
                hint = f"did you mean {meant[0]}? There" if meant else "there"
                there = f"{hint} are {', '.join(known)}"
                raise UserError(f"classes: {name!r} is no class of this detector: {there}")
        self.model.wanted = torch.tensor([name in names for name in self.class_names])

    def push_to_hub(self, repository: str, *, license: str, private: bool = False) -> None:
        """Put it on the Hugging Face hub, where `load_detector("hf-hub:OWNER/NAME")` finds it.

        A new one gets a card. The checkpoint's metadata name the folders of the training data.

        Args:
            repository: `OWNER/NAME`.
            license: of the weights, by an identifier of the hub, such as `apache-2.0` or `other`.
            private: a new repository is seen by its owner alone.

        Raises:
            UserError: no right, no connection, or not what `load_detector` read of a checkpoint.
        """
        if "config" not in self.metadata or "engine" in self.metadata:
            raise UserError("push_to_hub takes what load_detector read of a .safetensors file")
        state = self.model.state_dict()
        push_weights(repository, state, self.metadata, license=license, private=private)

    @overload
    def __call__(
        self,
        image: Image,
        proposals: Proposals | None = None,
        *,
        score_thresh: float | None = None,
        bgr: bool = False,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        image: list[Any],
        proposals: list[Proposals] | None = None,
        *,
        score_thresh: float | None = None,
        bgr: bool = False,
    ) -> list[Result]: ...

    @torch.inference_mode()
    def __call__(
        self,
        image: Image | list[Any],
        proposals: Any = None,
        *,
        score_thresh: float | None = None,
        bgr: bool = False,
    ) -> Result | list[Result]:
        """Detect objects in one image, or as `detect` in a list of them or a folder.

        Args:
            image: a file, an `uint8` array `[H, W, 3]`, an `uint8` tensor `[3, H, W]`, or an image
                of Pillow. Arrays and tensors are RGB unless `bgr` says otherwise.
            proposals: regions to look at, needed where the detector has no proposer.
            score_thresh: detections below it are left out; None: `best_score_thresh`, as in the
                command `infer`. With 0 there are those of all scores, as average precision wants
                them, down to the detector's own `model.rcnn.score_thresh`.
            bgr: the array or tensor has blue first, as OpenCV reads images.

        Returns:
            Boxes, labels and scores on the CPU, best first, and what can be made of them; of a list
            or folder a list of these.

        Raises:
            ImageError: the file cannot be read.
            UserError: an array or tensor of another shape or dtype, or something else.
        """
        if isinstance(image, list | tuple) or is_folder(image):
            return self.detect(image, proposals, score_thresh=score_thresh, bgr=bgr)
        regions = None if proposals is None else [proposals]
        return self.detect([image], regions, score_thresh=score_thresh, bgr=bgr)[0]

    @torch.inference_mode()
    def detect(
        self,
        images: Sequence[Image] | Folder,
        proposals: Sequence[Proposals] | None = None,
        *,
        score_thresh: float | None = None,
        bgr: bool = False,
    ) -> list[Result]:
        """Detect objects in some images: the same as one by one, in less time.

        Crops of several images share a batch. A handful of images is enough; all are in memory.

        Args:
            images: a list of what `__call__` takes, or a folder of images; sizes may differ,
                neighbours of one size are faster.
            proposals: of each image, as in `__call__`.
            score_thresh: as in `__call__`.
            bgr: as in `__call__`.

        Returns:
            One for each image, as from `__call__`; of a folder's file that cannot be read there is
            a warning and none.

        Raises:
            UserError: as `__call__`, or a folder without images.
        """
        skips = is_folder(images)
        if is_folder(images):
            images = image_files(images)
        several = check_several(images, f"detect takes a list of images or a folder{_ONE}")
        named = list(self._read(several, bgr, skips=skips))
        if not named:
            return []
        found = self.detect_tensors([tensor for _, tensor in named], proposals)
        return [
            self._result(one, tensor, (name, None), score_thresh)
            for one, (name, tensor) in zip(found, named, strict=True)
        ]

    def _result(
        self, found: dict[str, Tensor], tensor: Tensor, source: Origin, score_thresh: float | None
    ) -> Result:
        least = self.best_score_thresh if score_thresh is None else score_thresh
        found = above_score(found, least)
        return Result(found, tensor, self.class_names, self.category_ids, *source)

    @torch.inference_mode()
    def detect_tensors(
        self, tensors: Sequence[Tensor], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        """As `detect`, of `uint8` RGB `[3, H, W]` on its device; plain tensors come out.

        A `Result` keeps its image; these do not.
        """
        self._warn_of_shrinking(tensors)
        if proposals is None and any(self.is_large(*image.shape[1:]) for image in tensors):
            return [
                self._detect_parts(PartsOfTensor(image), self._one_by_one)
                if self.is_large(*image.shape[1:])
                else self._detect_whole([image])[0]
                for image in tensors
            ]
        return self._detect_whole(tensors, proposals)

    @torch.inference_mode()
    def _detect_whole(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        return self.model.detect([upload(image, self.device) for image in images], proposals)

    def is_large(self, height: int, width: int) -> bool:
        """Whether an image of so many pixels is detected in block by block, see `detect.blocks`.

        Only at a scale: without one it is looked at as a whole, whatever its size.
        """
        return self._scale is not None and height * width > LARGE_PIXELS

    @property
    def _scale(self) -> float | None:
        proposer = self.model.proposer
        return proposer.scale if isinstance(proposer, LearnedProposer) else None

    @torch.inference_mode()
    def detect_parts(self, image: Parts) -> dict[str, Tensor]:
        """Detect objects in an image of any size, as in one that is in memory as a whole.

        Args:
            image: read part by part, each in memory for as long as it is worked on.

        Returns:
            As from `__call__`.

        Raises:
            ValueError: the detector looks at images as a whole (`model.learned.scale` is null).
            ImageError: a part cannot be read.
        """
        return self._detect_parts(image, partial(self._through, self._detect_whole))

    def _detect_parts(self, image: Parts, detect: DetectBlocks) -> dict[str, Tensor]:
        if self._scale is None:
            raise ValueError(
                "a detector that looks at images as a whole needs all of an image in memory: set "
                "model.learned.scale"
            )
        agnostic = self.model.config.agnostic_nms
        return detect_in_blocks(image, detect, self._scale, agnostic_nms=agnostic)

    def _one_by_one(
        self, images: Iterable[tuple[Key, Tensor]]
    ) -> Iterator[tuple[Key, Tensor, dict[str, Tensor]]]:
        """As `detect_named`, where the caller is a thread among others already."""
        for key, image in images:
            yield key, image, self._detect_whole([image])[0]

    def _warn_of_shrinking(self, images: Sequence[Tensor]) -> None:
        """Say once that images are far larger than those of training and are seen as a whole."""
        if not self._warned and (said := shrinking(self.metadata, images)):
            self._warned = True
            logger.warning(said)

    def stream(
        self,
        images: Iterable[Image] | Folder,
        *,
        score_thresh: float | None = None,
        bgr: bool = False,
    ) -> Iterator[Result]:
        """Detect objects in any number of images, faster than batch by batch.

        The next images are read meanwhile, and a CPU works on several batches at a time. The first
        result comes when some batches of 8 images for each of its threads have been read, which
        are in memory: for frames as they happen, call the detector itself.

        Args:
            images: of what `__call__` takes, which may come one by one, a folder of images, or a
                video file, whose frames are taken.
            score_thresh: as in `__call__`.
            bgr: as in `__call__`.

        Returns:
            One for each image, as from `__call__`, in their order; of a folder as from `detect`.

        Raises:
            ValueError: at once, for what is no series of images, or without a proposer.
            ImageError, ValueError: as `__call__`, after what was found in the images before.
        """
        self.model.require_proposer()
        if score_thresh is not None:
            check_score("score_thresh", score_thresh)
        named: Iterable[tuple[Origin, Tensor]]
        if is_video(images):
            from detect.media.video import VideoReader  # which takes a moment to import

            name, count = os.fspath(images), None
            frames = enumerate(VideoReader(name).timed())
            named = (((name, (i, time)), image) for i, (image, time) in frames)
        else:
            skips = is_folder(images)
            if is_folder(images):
                images = image_files(images)
            taker = f"stream takes a series of images, a folder or a video{_ONE}"
            several = check_several(images, taker)
            count = len(images) if isinstance(images, Sequence) else None
            named = (((n, None), image) for n, image in self._read(several, bgr, skips=skips))
        return (
            self._result(found, tensor, source, score_thresh)
            for source, tensor, found in self.detect_named(named, count)
        )

    def _read(
        self, images: Iterable[Image], bgr: bool, *, skips: bool
    ) -> Iterator[tuple[str | None, Tensor]]:
        """Checked images, which stay as they are when the caller's array gets the next one; what
        cannot be read is an error, or `skips` and is a warning."""
        for i, image in enumerate(images):
            try:
                tensor = self.as_tensor(image, bgr=bgr)
            except ImageError as error:
                if not skips:
                    raise
                logger.warning("left out: %s", error)
                continue
            check_image(tensor, f"images[{i}]")
            name = file_name(image)
            yield name, tensor.clone() if isinstance(image, np.ndarray | Tensor) else tensor

    def detect_named(
        self, images: Iterable[tuple[Key, Tensor]], count: int | None = None
    ) -> Iterator[tuple[Key, Tensor, dict[str, Tensor]]]:
        """As `stream`, of tensors that each have something that names them, which comes out too.

        Args:
            images: `uint8` RGB `[3, H, W]`, read in another thread; none may change afterwards.
            count: how many there are, where it is known.
        """
        yield from self._through(self.detect_tensors, images, count)

    def _through(
        self,
        detect: Callable[[list[Tensor]], list[dict[str, Tensor]]],
        images: Iterable[tuple[Key, Tensor]],
        count: int | None = None,
    ) -> Iterator[tuple[Key, Tensor, dict[str, Tensor]]]:
        def work(batch: list[tuple[Key, Tensor]]) -> list[tuple[Key, Tensor, dict[str, Tensor]]]:
            found = detect([image for _, image in batch])
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
        several = check_several(images, "propose takes a list of images")
        return self.model.propose([self.as_tensor(image) for image in several])

    def as_tensor(self, image: Image, *, bgr: bool = False) -> Tensor:
        """An image as `uint8` RGB `[3, H, W]`, on the detector's device; as `__call__`."""
        return upload(to_tensor(image, bgr=bgr), self.device)
