"""From a configuration to a dataset, and whether its classes are those that a detector knows."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from backbones.common.errors import UserError
from detect.data import DetectionDataset, load_coco, load_voc, load_yolo, make_digits

logger = logging.getLogger(__name__)

DatasetFormat = Literal["coco", "voc", "yolo", "digits"]


@dataclass(frozen=True)
class DatasetConfig:
    """Which images and boxes; `format` and `root` must be named before anything is loaded."""

    format: DatasetFormat | None = None
    """Layout of the dataset, to be named: `coco` (ROOT/annotations/[instances_]SPLIT.json, images
    in ROOT/SPLIT or ROOT/images/SPLIT), `voc` (ROOT with Annotations, ImageSets/Main and
    JPEGImages), `yolo` (ROOT/data.yaml, images and labels in the folders that it names), `digits`
    (handwritten digits on photographs, generated into ROOT when it is not there)."""
    root: str | None = None
    """Folder of the dataset, to be named."""
    class_names: tuple[str, ...] | None = None
    """Classes in the order of their labels, for data in VOC's layout only; null takes VOC's 20
    where the annotations have no others, else the names in them."""

    def __post_init__(self) -> None:
        if self.class_names is not None and self.format != "voc":
            raise UserError(
                f"data.class_names is for data.format voc, got {self.format}: other annotations "
                "name their classes"
            )


def build_dataset(config: DatasetConfig, split: str) -> DetectionDataset:
    """Load one split; `digits` are generated first where they are missing.

    Raises:
        UserError: no dataset is named, a file is missing or malformed, or the split is empty.
    """
    if config.format is None or config.root is None:
        raise UserError(
            "name the dataset by --data.format (coco, voc, yolo or digits) and --data.root, or by "
            "--config FILE.yaml"
        )
    root = Path(config.root)
    if config.format == "voc":
        return load_voc(root, split, class_names=config.class_names)
    if config.format == "yolo":
        return load_yolo(root, split)
    if config.format == "digits":
        make_digits(root)
    annotations = _first_existing(
        root / "annotations" / f"instances_{split}.json", root / "annotations" / f"{split}.json"
    )
    return load_coco(annotations, _first_existing(root / split, root / "images" / split))


def _first_existing(first: Path, second: Path) -> Path:
    for path in (first, second):
        if path.exists():
            return path
    raise UserError(f"{first}: not found, and neither is {second}: check data.root and the split")


def check_same_classes(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    dataset: DetectionDataset,
    split: str | None,
) -> None:
    """Raise `UserError` unless a split has the classes of the training data, in their order."""
    known, found = (
        list(zip(*pair, strict=True))
        for pair in ((category_ids, class_names), (dataset.category_ids, dataset.class_names))
    )
    if found != known:
        raise UserError(
            f"the classes of split {split} are not those of the training split: "
            f"{_listed(found)}; expected {_listed(known)}: give the same ids and names in both "
            "(data.class_names sets those of the voc layout)"
        )


def warn_without_objects(dataset: DetectionDataset, split: str) -> bool:
    """Whether a split has no objects, with a warning of what follows from that."""
    is_without = not any(dataset.objects_by_class().values())
    if is_without:
        logger.warning("split %s has no objects: average precision is not defined on it", split)
    return is_without


def dataset_for(data: DatasetConfig, class_names: Sequence[str]) -> DatasetConfig:
    """The dataset to use a detector of these classes on; in VOC's layout it has them if no others
    were named, so that it need not show all of them."""
    if data.format == "voc" and data.class_names is None:
        return replace(data, class_names=tuple(class_names))
    return data


def _listed(classes: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{category_id} {name}" for category_id, name in classes)
