"""A trained detector as one file, and what to call it with."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from backbones.config import from_dict, to_dict
from backbones.device import resolve_device
from backbones.errors import MissingPackageError, UserError
from backbones.files import read_image
from backbones.weights import load_weights, save_weights
from detect.build import build_detector
from detect.checks import check_image
from detect.config import ModelConfig
from detect.parallel import work_through
from detect.proposals import Proposals
from detect.rcnn import RCNN

Image = str | os.PathLike[str] | np.ndarray | Tensor | PIL.Image.Image
"""A file, an `uint8` RGB array `[H, W, 3]`, an `uint8` RGB tensor `[3, H, W]`, or Pillow's."""

ONE_IMAGE = (str, os.PathLike, np.ndarray, Tensor, PIL.Image.Image)

Key = TypeVar("Key")

SETTINGS_OF_USE = (
    "proposals_per_image",
    "proposal_score_thresh",
    "learned.nms_thresh",
    "learned.pre_nms_top_n",
    "rcnn.crop_size",
    "rcnn.refine_steps",
    "rcnn.merge_proposal",
    "rcnn.flip_test",
    "rcnn.objectness_weight",
    "rcnn.score_thresh",
    "rcnn.nms_thresh",
    "rcnn.soft_nms_sigma",
    "rcnn.box_voting_iou",
    "rcnn.detections_per_image",
)
"""Keys of `ModelConfig` that may have other values in use than in training."""


class Detector:
    """A detector ready for use: call it with an image.

    Attributes:
        model: the `RCNN` in eval mode.
        class_names: `class_names[label - 1]` names a label.
        category_ids: `category_ids[label - 1]` is the category id of the training data, for
            results in COCO format.
        metadata: everything the checkpoint says: config, figures, package version.
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
        if proposals is not None:
            proposals = [Proposals(*(t.to(self.device) for t in given)) for given in proposals]
        detections = self.model([self.as_tensor(image) for image in images], proposals=proposals)
        return [{key: value.cpu() for key, value in found.items()} for found in detections]

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
        """Where the detector looks in each image; each region costs a crop. On its device.

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
        return image.to(self.device)


def save_detector(
    path: str | Path,
    model: RCNN,
    config: ModelConfig,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    figures: Mapping[str, float],
) -> None:
    """Write one `.safetensors` file: weights, and as metadata all that `load_detector` needs.

    Args:
        path: file to write; replaced atomically.
        model: the detector.
        config: what it was built from.
        class_names: of labels `1..K`.
        category_ids: of labels `1..K` in the training data.
        figures: scores it was measured at, e.g. `{"AP50": 0.81}`.
    """
    spec = model.backbone.spec
    metadata = {
        "kind": "detector",
        "config": asdict(config),
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "variant": spec.name,
        "input_size": spec.input_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "figures": dict(figures),
    }
    save_weights(path, model.state_dict(), metadata)


def load_detector(
    path: str | Path, device: str = "auto", settings: Mapping[str, Any] | None = None
) -> Detector:
    """Read a file that `save_detector` wrote. Nothing in it is executed.

    Args:
        path: the file, or a run folder, of which `best.safetensors` is taken, or where nothing
            chose `last.safetensors`.
        device: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one.
        settings: keys of `ModelConfig` with other values than in training, groups as mappings, such
            as `{"proposal_score_thresh": 0.1, "rcnn": {"nms_thresh": 0.4}}`; those in
            `SETTINGS_OF_USE`, as the weights were trained for the others.

    Raises:
        UserError: missing, not a detector, or one whose tensors do not fit its own configuration or
            the settings.
        MissingPackageError: it needs an optional package that is not there.
    """
    if Path(path).is_dir():
        names = ("best.safetensors", "last.safetensors")
        files = [Path(path, name) for name in names if Path(path, name).exists()]
        if not files:
            raise UserError(f"{path}: neither {names[0]} nor {names[1]} is in this run folder")
        path = files[0]
    elif not Path(path).exists():
        raise UserError(f"{path}: not found: expected a run folder or a .safetensors file")
    state, metadata = load_weights(path)
    if metadata.get("kind") != "detector":
        kind = metadata.get("kind")
        found = f"this is a {kind}" if kind else "this file does not say what it holds"
        raise UserError(f"{path}: expected a checkpoint of train_detector, {found}")
    try:
        config_dict = dict(metadata["config"])
        class_names, category_ids = list(metadata["class_names"]), list(metadata["category_ids"])
        if len(class_names) != len(category_ids) or not class_names:
            raise ValueError(f"{len(class_names)} class names, {len(category_ids)} category ids")
        # The weights are in this very file; the backbone they once started from need not exist.
        started_anew = {"weights": None, "freeze": "none"}
        trained_as = from_dict(ModelConfig, config_dict | started_anew)
        # Without storage: the sizes in a hostile file cost nothing until they are checked.
        with torch.device("meta"):
            outline = build_detector(trained_as, len(class_names)).state_dict()
    except MissingPackageError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{path}: detector checkpoint with broken metadata: {reason}") from error
    _check_fit(outline, state, path)
    _check_settings(settings or {})
    config = trained_as
    if settings:
        trained_with = to_dict(trained_as)
        if (settings.get("rcnn") or {}).get("soft_nms_sigma") is not None:
            # Not used beside it, and so refused with another value than the default.
            trained_with["rcnn"].pop("nms_thresh")
        config = from_dict(ModelConfig, _changed(trained_with, settings))
    model = build_detector(config, len(class_names))
    model.load_state_dict(state)
    metadata = {**metadata, "config": to_dict(config)}
    return Detector(model.to(resolve_device(device)), class_names, category_ids, metadata)


def _check_settings(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Raise `UserError` for a key that training has fixed."""
    for key, value in settings.items():
        name = prefix + key
        if isinstance(value, Mapping) and not prefix:
            _check_settings(value, f"{key}.")
        elif name not in SETTINGS_OF_USE:
            near = difflib.get_close_matches(name, SETTINGS_OF_USE, n=1, cutoff=0.8)
            hint = f", did you mean model.{near[0]}?" if near else ""
            known = ", ".join(f"model.{setting}" for setting in SETTINGS_OF_USE)
            raise UserError(f"model.{name} is no setting of use{hint} There are {known}")


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with other values for some keys."""
    changed = dict(config)
    for key, value in changes.items():
        own = config.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):
            value = _changed(own, value)
        changed[key] = value
    return changed


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise `UserError` naming the first tensor that does not fit."""
    for name in sorted(own.keys() | state.keys()):
        expected = list(own[name].shape) if name in own else None
        got = list(state[name].shape) if name in state else None
        if expected != got:
            raise UserError(
                f"{path}: checkpoint of another architecture: tensor {name} is "
                f"{got or 'missing'}, this detector needs {expected or 'none of that name'}"
            )
