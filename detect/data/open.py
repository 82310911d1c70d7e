"""From a configuration to a dataset, and whether its classes are those that a detector knows."""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from backbones.common.config import from_dict
from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from detect.data import DetectionDataset, make_digits
from detect.data.layouts import Layout, first_of, recognise
from detect.data.paths import is_inside, refuse_address
from detect.data.sample import check_class_name
from detect.data.splits import hold_out, scene_of
from detect.data.unread import say_unread

logger = logging.getLogger(__name__)

FEW = 6
"""Classes that a line of text names."""

DatasetFormat = Literal["auto", "coco", "voc", "yolo", "digits"]
Config = TypeVar("Config", bound="DatasetConfig")


@dataclass(frozen=True)
class DatasetConfig:
    """Which images and boxes; `root` must be named before anything is loaded."""

    SHORT: ClassVar[dict[str, str | None]] = {"root": None, "format": "auto"}
    """What `--data PATH` sets: the path, and that it is to be recognised."""

    format: DatasetFormat = "auto"
    """Layout of the dataset: `auto` recognises it, see docs/data.md; `coco`, `voc` and `yolo` look
    for that alone, `digits` are handwritten ones on photographs, generated into ROOT when they are
    not there."""
    root: str | None = None
    """Folder of the dataset, or the file that says what is in it; `--data PATH` names it and lets
    its layout be recognised."""
    class_names: tuple[str, ...] | None = None
    """Classes in the order of their labels, for data in VOC's layout only; null takes those of
    `labelmap.txt` and behind them the others found; without that file VOC's 20 where its lists of
    splits are there and the annotations have no others."""
    val_share: float = 0.2
    """Share of the training images that are held out as `val` where the data have no such split, in
    whole scenes as far as file names tell; 0 makes none."""
    split_seed: int = 0
    """Another one holds out other images."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.", {"[0, 1)": "val_share"})
        if self.class_names is not None and self.format not in ("auto", "voc"):
            _refuse_class_names(self.format)
        for name in self.class_names or ():
            check_class_name(name, "data.class_names")


_HELD_OUT = (DatasetConfig.val_share, DatasetConfig.split_seed)


def _refuse_class_names(format: str) -> None:
    raise UserError(
        f"data.class_names is for data.format voc, got {format}: other annotations name their "
        "classes"
    )


def resolve_data(config: Config) -> Config:
    """The configuration with the path from the root and the format that `auto` finds, said in a
    line; as it stands it may be kept for later.

    Raises:
        UserError: no dataset is named, or what is there is not recognised.
    """
    layout = _layout(config)
    format = config.format if config.format == "digits" else layout.format
    logger.info("%s: %s, splits: %s", config.root, layout.words, layout.listed())
    for sentence in [*layout.missing, *say_unread(Path(str(config.root)), layout)]:
        logger.warning("%s", sentence)
    return replace(config, root=os.path.abspath(str(config.root)), format=format)


def keep_out_of_data(output: str | None, config: DatasetConfig) -> None:
    """Raise `UserError` for an output in the dataset: a picture that is written there would be one
    of its images, and a list in JSON one of its annotations.

    That is its own folder, and those of which all images are taken with what lies below them.
    """
    if output is None:
        return
    root, place = Path(str(config.root)), os.path.realpath(output)
    if place == os.path.realpath(root.parent if root.is_file() else root):
        raise UserError(f"{output}: is the folder of the dataset: name another one for the output")
    for _, path in _layout(config).taken:
        if path.is_dir() and is_inside(place, os.path.realpath(path)):
            raise UserError(
                f"{output}: lies in {path}, all of whose pictures are images of the dataset: name "
                "a place outside of it for the output"
            )


def has_split(config: DatasetConfig, split: str) -> bool:
    """Whether the data have a split, made ones not counted; raises as `resolve_data`."""
    return _layout(config).find(split) is not None


def split_names(config: DatasetConfig) -> list[str]:
    """`train`, `val` and `test`, as far as the data have them or `val` is made; without any of
    these all that there are. Raises as `resolve_data`."""
    layout = _layout(config)
    names = [name for name in ("train", "val", "test") if layout.find(name) is not None]
    if names[:1] == ["train"] and "val" not in names and config.val_share:
        names.insert(1, "val")
    return names or list(layout.splits)


def build_dataset(config: DatasetConfig, split: str) -> DetectionDataset:
    """Load one split; `digits` are generated first where they are missing.

    Raises:
        UserError: no dataset is named, a file is missing or malformed, or the split is empty.
    """
    return build_datasets(config, [split])[0]


def build_datasets(config: DatasetConfig, splits: Sequence[str]) -> list[DetectionDataset]:
    """Load several splits, each file once; raises as `build_dataset`."""
    layout = _layout(config)
    of_train = layout.find("train")
    # Without a split to choose the best epoch by, one is made of the training images.
    makes_val = bool(config.val_share) and of_train is not None and layout.find("val") is None
    loaded: dict[str, DetectionDataset] = {}
    parts: dict[str, DetectionDataset] = {}
    found = []
    for split in splits:
        name = of_train if split == "val" and makes_val else layout.find(split)
        if name is None:
            raise UserError(f"{config.root}: no split {split}; there are: {layout.listed()}")
        if name not in loaded:
            loaded[name] = layout.splits[name]()
        dataset = loaded[name]
        if makes_val and split in ("train", "val"):
            if not parts:
                parts = _divide(dataset, config)
            dataset = parts[split]
        found.append(dataset)
    whole = {layout.find(split) for split in splits if split not in ("train", "val")}
    if parts and of_train in whole:
        raise UserError(f"{config.root}: val is held out of {of_train}: name that one train")
    return found


def _layout(config: DatasetConfig) -> Layout:
    if config.root is None:
        raise UserError(
            "name the dataset by --data PATH, or by --data.root and --data.format (auto, coco, "
            "voc, yolo or digits), or by --config FILE.yaml"
        )
    refuse_address(config.root, "data")
    root = Path(config.root)
    if config.format == "digits":
        make_digits(root)
    format = "coco" if config.format == "digits" else config.format
    layout = recognise(root, format, config.class_names)
    if config.class_names is not None and layout.format != "voc":
        _refuse_class_names(layout.format)
    return layout


def _divide(dataset: DetectionDataset, config: DatasetConfig) -> dict[str, DetectionDataset]:
    """`train` and `val` of a split that is both, said in a line."""
    root = str(config.root)
    # Whatever names the dataset, its folder or a file in it, the same are held out.
    paths = [os.path.basename(path) for path in dataset.paths]
    if len(set(paths)) < len(paths):
        paths = [os.path.relpath(path, os.path.commonpath(dataset.paths)) for path in dataset.paths]
    if len(set(paths)) < 2:
        raise UserError(
            f"{root}: one image cannot be divided into train and val: train with --data.val null "
            "(inspect_data, evaluate: --data.val_share 0)"
        )
    held = hold_out(paths, config.val_share, config.split_seed)
    scenes = len({scene_of(path) for path in paths})
    what = f"{scenes} scenes by their file names, each as a whole"
    if scenes in (1, len(paths)):
        what = "one by one, as file names tell of no scenes"
    logger.info(
        "%s: no split val: of %d images %d are held out by seed %d (%s)",
        *(root, len(paths), held.sum(), config.split_seed, what),
    )
    return {"train": dataset.subset((~held).nonzero()[0]), "val": dataset.subset(held.nonzero()[0])}


def match_classes(
    class_names: Sequence[str],
    category_ids: Sequence[int],
    dataset: DetectionDataset,
    split: str | None,
    *,
    unknown: Literal["refuse", "miss"] = "refuse",
) -> DetectionDataset:
    """A split with its classes as labels of a detector, matched by name; what differs is said.

    Args:
        class_names: of the detector's labels `1..K`.
        category_ids: of these, for classes that the split lacks.
        dataset: the split.
        split: its name.
        unknown: what becomes of classes with objects that the detector lacks: refused, or labels
            above K, whose objects all count as missed.

    Returns:
        The split with the detector's classes first; those that it has keep its own ids.

    Raises:
        UserError: no class is in both, or one of the split is unknown to the detector.
    """
    known = dict(zip(class_names, category_ids, strict=True))
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    if list(ids.items()) == list(known.items()):
        return dataset
    extra, lacking = (
        [name for name in a if name not in b] for a, b in ((ids, known), (known, ids))
    )
    objects = dataset.objects_by_class()
    missed = [name for name in extra if objects[name]]
    if len(lacking) == len(known) or (missed and unknown == "refuse"):
        raise UserError(
            f"split {split} has classes that are not those of the training: "
            f"{first_of(missed or extra, FEW)}; expected {first_of([*known], FEW)}: give the same "
            "names in both, or take these objects out"
        )
    if missed:
        logger.warning(
            "split %s has classes that the detector does not know, whose objects all count as "
            "missed: %s",
            *(split, first_of(missed, FEW)),
        )
    if lacking:
        logger.warning(
            "split %s lacks classes of the detector, which have no part in its AP: %s",
            *(split, first_of(lacking, FEW)),
        )
    if others := [f"{k} {ids[k]} ({known[k]})" for k in known if ids.get(k, known[k]) != known[k]]:
        logger.info(
            "split %s has other ids than the training, and is matched by name: %s",
            *(split, first_of(others, FEW)),
        )
    taken, free = set(ids.values()), itertools.count(max([*ids.values(), *known.values()]) + 1)
    # What is found of a class that the split lacks is written under an id that it has not either.
    ids |= {name: next(free) if known[name] in taken else known[name] for name in lacking}
    return dataset.relabelled([*known, *extra], [ids[name] for name in [*known, *extra]])


def warn_without_objects(dataset: DetectionDataset, split: str) -> bool:
    """Whether a split has no objects, with a warning of what follows from that."""
    is_without = not any(dataset.objects_by_class().values())
    if is_without:
        logger.warning("split %s has no objects: average precision is not defined on it", split)
    return is_without


def dataset_for(data: DatasetConfig, training: Mapping[str, Any] | None = None) -> DatasetConfig:
    """The dataset to use a detector on, resolved.

    Args:
        data: as it was named; without a root that of the training is taken, and where it does not
            say what is held out as `val`, the training's share and seed.
        training: the configuration that the detector's file holds.

    Raises:
        UserError: as `resolve_data`.
    """
    own = (training or {}).get("data")
    if isinstance(own, Mapping) and own.get("root") is not None:
        known = {field.name for field in fields(DatasetConfig)}
        kept = {key: value for key, value in own.items() if key in known}
        of_training = from_dict(DatasetConfig, kept, where="data of the training")
        if data.root is None:
            data = of_training
            logger.info("the data of the training: %s", data.root)
        elif (data.val_share, data.split_seed) == _HELD_OUT:
            # Else images that were trained on would be scored as `val`.
            data = replace(data, val_share=of_training.val_share, split_seed=of_training.split_seed)
    return resolve_data(data)
