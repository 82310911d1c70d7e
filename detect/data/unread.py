"""What lies beside that which is read of a dataset, and looks like more of it."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.common.listing import files_below
from detect.data.layouts import Layout, first_of, is_coco, visible_entries
from detect.data.splits import SPLITS, usual_split
from detect.data.voc_files import by_name, listed_names, without_flag
from detect.data.yolo_labels import label_file

_OF_OTHER_TASKS = ("captions_", "image_info_", "panoptic_", "person_keypoints_", "stuff_")
"""Beginnings of the names of COCO's other annotations."""

_SOME = 20
"""Images of a folder of which one with labels tells what it is."""


def say_unread(root: Path, layout: Layout) -> Iterator[str]:
    """A sentence about what looks like splits or annotations and is not read, if there is any, in
    the folder of the data and in those where files and folders are that are read."""
    top = os.path.abspath(root if os.path.isdir(root) else root.parent)
    taken = {Path(os.path.abspath(path)) for name, path in layout.taken if _is_read(name, layout)}
    above = {folder for path in taken for folder in path.parents}
    beside_folders = {path.parent for path in taken if path.is_dir()}
    places = {path.parent for path in taken if path.is_relative_to(top)} - {Path(top).parent}
    if os.path.isdir(root) or taken:
        places.add(Path(top))
    is_others = os.path.isfile(root)
    found = []
    for place in sorted(places):
        for entry in visible_entries(place):
            if entry in taken or entry in above or not taken.isdisjoint(entry.parents):
                continue
            # Beside a file that was named lie those of other datasets too.
            if is_others and place == Path(top) and usual_split(entry.name) not in SPLITS:
                continue
            if _is_part(entry, layout.format, place in beside_folders):
                found.append(os.path.relpath(entry, top) + "/" * entry.is_dir())
    if found:
        yield f"{root}: not read, though it looks like splits or annotations: {first_of(found, 3)}"
    yield from _say_unlisted(layout)


def _say_unlisted(layout: Layout) -> Iterator[str]:
    """Annotations of VOC that no list has, where there are lists."""
    main = next((path.parent for _, path in layout.taken if path.parent.name == "Main"), None)
    if main is None:
        return
    pages = main.parents[1] / "Annotations"
    there, listed = set(by_name(pages, {".xml"})), set[str]()
    # The challenges have images that are for segmentation or actions alone.
    for path in main.parent.glob("*/*.txt"):
        with suppress(UserError):  # which a list that is used says itself
            for entry in listed_names(path):  # with a flag, or for the parts of an object two
                listed |= {entry, without_flag(entry), without_flag(without_flag(entry))}
    if rest := sorted(there - listed):
        yield f"{pages}: in no list of ImageSets, not read: {len(rest)}, first {rest[0]}.xml"


def _is_read(name: str, layout: Layout) -> bool:
    """Not so where two names mean the same split; `trainval` is no other images than those."""
    usual = usual_split(name)
    is_both = name.startswith("trainval") and layout.find("val") is not None
    return usual not in SPLITS or is_both or layout.find(usual) == name


def _is_part(path: Path, format: str, beside_folders: bool) -> bool:
    if not path.is_dir():
        return _is_annotation(path, format)
    files = list(files_below(path))
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    labels = [file for file in files if format == "yolo" and file.suffix.lower() == ".txt"]
    # COCO's test images come without annotations.
    is_test = format == "coco" and usual_split(path.name) == "test"
    if beside_folders and (images or labels) and _names_split(path.name) and not is_test:
        return True
    if format == "yolo":
        return any(map(_has_labels, images[:_SOME]))
    return any(_is_annotation(file, format) for file in files)


def _is_annotation(path: Path, format: str) -> bool:
    suffix, name = path.suffix.lower(), path.stem.lower()
    if format == "coco":
        return (
            suffix == ".json"
            and not name.startswith(_OF_OTHER_TASKS)
            and (_names_split(name) or path.parent.name == "annotations" or is_coco(path))
        )
    if format == "yolo" and suffix in IMAGE_SUFFIXES:
        return _has_labels(path)
    return (suffix == ".txt" and _names_split(name)) or (suffix == ".xml" and format == "voc")


def _has_labels(image: Path) -> bool:
    return os.path.lexists(label_file(image))


def _names_split(name: str) -> bool:
    words = re.findall("[a-z]+", name.lower())
    return any(usual_split(word) in SPLITS for word in words)
