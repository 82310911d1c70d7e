"""Which of the usual layouts a folder of images and annotations has, as tools write them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from backbones.common.addresses import without_secrets
from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.common.listing import files_below, is_visible
from backbones.common.regular_files import read_file
from detect.data.coco import load_coco
from detect.data.sample import DetectionDataset
from detect.data.splits import SPLITS, find_split, usual_split
from detect.data.voc import load_voc, load_voc_pairs
from detect.data.yolo import is_there, load_yolo, places_of, read_document

EXPECTED = {
    "voc": "Pascal VOC (Annotations beside JPEGImages, or .xml beside images, in folders train, "
    "valid and test or in one)",
    "coco": "COCO (annotations/SPLIT.json or annotations/instances_SPLIT.json, "
    "SPLIT/_annotations.coco.json, or one .json beside images)",
    "yolo": "YOLO (data.yaml, obj.names, or classes.txt beside images and labels)",
}
"""What is looked for, by format."""


_YOLO_IMAGES = ("train/images", "images/train", "images", ".")


class Layout(NamedTuple):
    """What a folder was recognised as.

    Attributes:
        format: `voc`, `coco` or `yolo`.
        words: the layout, for people.
        splits: how each is loaded, by the name that it has there. Without any that is a `train`,
            all images are of one split, `train`.
        missing: a sentence for each split that is named and is not there.
        taken: files and folders that are read, each with the name of its split, `""` for all; may
            be an iterator, for lists of images are read for it.
    """

    format: Literal["voc", "coco", "yolo"]
    words: str
    splits: Mapping[str, Callable[[], DetectionDataset]]
    missing: Sequence[str] = ()
    taken: Iterable[tuple[str, Path]] = ()

    def find(self, split: str) -> str | None:
        """The name that a split has here: its own, or one that means the same (`valid`)."""
        return find_split(split, self.splits)

    def listed(self) -> str:
        """The splits that there are, the usual ones first."""
        order = {name: number for number, name in enumerate(SPLITS)}
        names = sorted(self.splits, key=lambda name: (order.get(usual_split(name), 3), len(name)))
        return first_of(names, 6)


def recognise(root: Path, format: str, class_names: Sequence[str] | None) -> Layout:
    """The layout of a dataset.

    Args:
        root: its folder, or the file that says what is in it.
        format: `voc`, `coco` or `yolo`, or `auto` for the one that it is.
        class_names: for `load_voc`.

    Raises:
        UserError: there is none of these, or there are several; it says what was looked for.
    """
    if not os.path.exists(root):
        raise UserError(f"{root}: not found: expected the folder of a dataset, see data.root")
    finders: dict[str, Callable[[Path], Layout | None]] = {
        "voc": lambda root: _find_voc(root, class_names),
        "coco": _find_coco,
        "yolo": _find_yolo,
    }
    wanted = list(finders) if format == "auto" else [format]
    try:
        found = [layout for name in wanted if (layout := finders[name](root)) is not None]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if len(found) > 1:
        raise UserError(
            f"{root}: may be {' or '.join(layout.words for layout in found)}: name one of "
            f"{', '.join(layout.format for layout in found)} by --data.format"
        )
    if not found:
        places = [place for place in _YOLO_IMAGES if _holds(root / place, IMAGE_SUFFIXES)]
        if "yolo" in wanted and places and _holds(root, {".txt"}, deep=True):
            raise UserError(
                f"{root}: not recognised; if these are images and labels of YOLO, name their "
                f"classes: write {root / 'data.yaml'} with the lines `train: {places[0]}` and "
                "`names: [car, van]`, for the classes 0 and 1"
            )
        raise UserError(
            f"{root}: not recognised, looked for {'; '.join(EXPECTED[name] for name in wanted)}; "
            f"there is {_contents(root)}"
        )
    return found[0]


def _find_voc(root: Path, class_names: Sequence[str] | None) -> Layout | None:
    if not os.path.isdir(root):
        return None
    load = partial(load_voc_pairs, class_names=class_names)
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    # Label Studio has the second, FiftyOne the last.
    for pages, images in (
        ("Annotations", "JPEGImages"),
        ("Annotations", "images"),
        ("annotations", "images"),
        ("labels", "data"),
    ):
        if not os.path.isdir(root / images) or not _holds(root / pages, {".xml"}, deep=True):
            continue
        words = f"Pascal VOC ({pages} beside {images}"
        if images != "JPEGImages" or not lists:
            load = partial(load, root / pages, root / images)
            names = [
                part.name
                for part in _folders(root / images)
                if _is_split(part.name) and _holds(part, IMAGE_SUFFIXES, deep=True)
            ]
            splits = {name: partial(load, f"{name}/") for name in names} or {"train": load}
            places = [(name, root / place / name) for name in names for place in (pages, images)]
            places = places or [("", root / place) for place in (pages, images)]
            return Layout("voc", f"{words})", splits, taken=places)
        # Lists of one class have its name before the split's.
        whole = [one for one in lists if not any(one.stem.endswith(f"_{o.stem}") for o in lists)]
        named = {path.stem: path for path in lists}
        if len(whole) == 1 and not _is_split(whole[0].stem):  # CVAT calls it `default`
            named = {"train": whole[0], **named}
        splits = {
            name: partial(load_voc, root, path.stem, class_names) for name, path in named.items()
        }
        places = [*named.items()]
        places += [("", root / place) for place in (pages, images)]
        return Layout("voc", f"{words}, lists in ImageSets/Main)", splits, taken=places)
    parts = [entry for entry in _folders(root) if _holds(entry, {".xml"}) and _is_split(entry.name)]
    if parts:
        splits = {part.name: partial(load, root, root, f"{part.name}/") for part in parts}
        words = "Pascal VOC (.xml beside images, a folder for each split)"
        return Layout("voc", words, splits, taken=[(part.name, part) for part in parts])
    if _holds(root, {".xml"}) and _holds(root, IMAGE_SUFFIXES):
        words = "Pascal VOC (.xml beside images)"
        load = partial(load, root, root)
        return Layout("voc", words, {"train": load}, taken=[("train", root)])
    return None


def _find_coco(root: Path) -> Layout | None:
    if root.suffix == ".json":
        return _one_coco(root, root.parent)._replace(taken=())  # others are left out by intent
    if not os.path.isdir(root):
        return None
    roboflow = {part.name: part / "_annotations.coco.json" for part in _folders(root)}
    roboflow = {name: path for name, path in roboflow.items() if os.path.isfile(path)}
    if roboflow:
        splits = {name: partial(load_coco, path, path.parent) for name, path in roboflow.items()}
        parts = [(name, path.parent) for name, path in roboflow.items()]
        return Layout("coco", "COCO (SPLIT/_annotations.coco.json)", splits, taken=parts)
    files = sorted((root / "annotations").glob("*.json"))
    # COCO has captions and keypoints beside them.
    files = [path for path in files if path.stem.startswith("instances_")] or files
    if len(files) == 1 and not _is_split(files[0].stem):
        return _one_coco(files[0], root)
    if files:
        return _several_coco(files, root, "annotations/*.json")
    files = [path for path in visible_entries(root) if path.suffix == ".json"]
    files = [path for path in files if not path.is_dir() and is_coco(path)]
    if len(files) > 1 and len({usual_split(path.stem) for path in files} & {*SPLITS}) < len(files):
        names = ", ".join(path.name for path in files)
        raise UserError(f"{root}: may be any of {names}: name the file by --data")
    if len(files) > 1:
        return _several_coco(files, root, "*.json")
    return _one_coco(files[0], root) if files else None


def _several_coco(files: Iterable[Path], root: Path, words: str) -> Layout:
    named = {path.stem.removeprefix("instances_"): path for path in files}
    places = {name: _image_folders(root, name) for name in named}
    splits = {name: partial(load_coco, path, places[name]) for name, path in named.items()}
    of_all = _above(root)
    taken = [(name, place) for name in named for place in places[name] if place not in of_all]
    return Layout("coco", f"COCO ({words})", splits, taken=[*named.items(), *taken])


def _one_coco(path: Path, root: Path) -> Layout:
    name = path.stem.removeprefix("instances_")
    load = partial(load_coco, path, _image_folders(root, name))
    words = f"COCO ({path.name}, one file)"
    return Layout("coco", words, {"train": load}, taken=[("train", path)])


def _image_folders(root: Path, split: str) -> list[Path]:
    """Where the images of a split may be; `file_name` often begins with `images/`."""
    above = _above(root)
    places = [place / split for place in above]
    places += [part for place in above for part in _folders(place) if _same_split(part.name, split)]
    # What holds as many files stands first: what was made for it, and then what FiftyOne has.
    whole = (root / "images", root, root / "data")
    return [place for place in [*places, *whole] if os.path.isdir(place)]


def _above(root: Path) -> tuple[Path, Path, Path]:
    """Folders of images, and of their folders by split; FiftyOne has `data`."""
    return root, root / "images", root / "data"


def _same_split(name: str, split: str) -> bool:
    return _is_split(name) and usual_split(name) == usual_split(split)


def _find_yolo(root: Path) -> Layout | None:
    source = root
    if os.path.isdir(root):
        files = [path for path in visible_entries(root) if path.suffix in (".yaml", ".yml")]
        files = [path for path in files if _mentions(path, b"names", b"train")]
        files = [path for path in files if path.name == "data.yaml"] or files
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise UserError(f"{root}: may be any of {names}: name the file by --data")
        files += [root / name for name in ("data.yaml", "obj.names", "classes.txt")]
        there = [path for path in files if os.path.isfile(path)]
        if not there:
            return None
        source = there[0]
        has_images = _holds(root / "images", IMAGE_SUFFIXES, deep=True)
        if source.name == "classes.txt" and not (has_images or _holds(root, IMAGE_SUFFIXES)):
            return None
    elif root.suffix not in (".yaml", ".yml"):
        return None
    document = read_document(source)
    splits = {
        key: partial(load_yolo, source, key)
        for key in SPLITS
        if document.get(key) is not None and is_there(document, key, source)
    }
    missing = [
        f"{source}: {key}: {without_secrets(str(document[key]))}: not found, there is no split "
        f"{key}"
        for key in SPLITS
        if document.get(key) is not None and key not in splits
    ]
    if not splits:
        # Says what is wrong with it.
        splits = {"train": partial(load_yolo, source, "train")}
    taken = places_of(document, source)
    return Layout("yolo", f"YOLO ({source.name})", splits, missing, taken)


def _is_split(name: str) -> bool:
    return usual_split(name) in SPLITS


def is_coco(path: Path) -> bool:
    """Whether a file of JSON holds annotations in COCO's format."""
    return _mentions(path, b'"images"', b'"annotations"', b'"categories"')


def _mentions(path: Path, *words: bytes) -> bool:
    data = read_file(path)
    return all(word in data for word in words)


def visible_entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where it is none."""
    if not os.path.isdir(folder):
        return []
    return sorted(entry for entry in folder.iterdir() if is_visible(entry.name))


def _folders(root: Path) -> list[Path]:
    if not os.path.isdir(root):
        return []
    # Of very many images, each is not asked for.
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if is_visible(entry.name) and entry.is_dir()]
    return [root / name for name in sorted(names)]


def _holds(folder: Path, suffixes: Iterable[str], *, deep: bool = False) -> bool:
    """Whether a file with one of some suffixes is in a folder, or deeper."""
    files = files_below(folder) if deep else visible_entries(folder)
    return any(path.suffix.lower() in suffixes for path in files)


def _contents(root: Path) -> str:
    """The first of what a folder holds, for a message."""
    if os.path.isfile(root):
        return f"the file {root.name}"
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in visible_entries(root)]
    return first_of(names, 6) or "nothing"


def first_of(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are, for a line of text."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
