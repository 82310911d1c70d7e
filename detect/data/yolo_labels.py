"""Label files of YOLO's layout: a text file an image, a row an object."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backbones.common.errors import UserError
from backbones.common.listing import files_below
from backbones.common.regular_files import read_file
from detect.data.paths import name_on_disk

_NAME_LISTS = ("classes.txt", "obj.names")

logger = logging.getLogger(__name__)


def label_file(image: Path) -> Path:
    """`.../images/a/b.jpg` -> `.../labels/a/b.txt`; beside the image where no `images` is above, or
    the file is there alone."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    path, beside = (
        one.with_name(name_on_disk(one.parent, one.name))
        for one in (Path(*parts).with_suffix(".txt"), image.with_suffix(".txt"))
    )
    return path if os.path.lexists(path) or not os.path.lexists(beside) else beside


def read_labels(
    path: Path, labels_of: dict[int, int], points: int, source: Path
) -> Iterator[tuple[int, tuple[int, float, float, float, float]]]:
    """Line number, and class number with x1, y1, x2, y2 in fractions of the image, of each row,
    behind whose box stand so many values of points."""
    if not os.path.lexists(path):
        return
    for line, text in enumerate(lines_of(path), start=1):
        if not text:
            continue
        where = f"{path}, line {line}"
        try:
            # float() alone would take "1_0".
            number, *values = (float(field.replace("_", "?")) for field in text.split())
        except ValueError:
            raise UserError(f"{where}: expected numbers, got {text[:60]!r}") from None
        if number not in labels_of:
            raise UserError(
                f"{where}: class {number:g} is not among the classes of {source.name}, "
                f"{', '.join(map(str, labels_of))}"
            )
        if points and len(values) != 4 + points:
            raise UserError(
                f"{where}: expected `class x y width height` and {points} values of points, as "
                f"kpt_shape says, got {len(values) + 1} numbers"
            )
        values = values[:4] if points else values
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise UserError(
                f"{where}: expected `class x y width height` or a polygon of three points or more, "
                f"got {len(values) + 1} numbers"
            )
        if not all(-0.01 <= value <= 1.01 for value in values):
            wrong = next(value for value in values if not -0.01 <= value <= 1.01)
            hint = " (are these pixels?)" if math.isfinite(wrong) and abs(wrong) > 2 else ""
            raise UserError(
                f"{where}: expected fractions of the image from 0 to 1, got {wrong:g}{hint}"
            )
        if len(values) == 4:
            x, y, width, height = values
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:
            xs, ys = values[::2], values[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
        yield line, (int(number), *box)


def warn_of_orphans(images: Sequence[Path], folders: Iterable[Path]) -> None:
    """Count images without a label file of their own, and label files that no image has, beside
    these and in folders of labels and deeper."""
    expected = {label_file(path): path for path in images}
    shared = [path for path in images if expected[label_file(path)] != path]
    if shared:
        what = "images that have the label file of another, whose name differs in its ending alone"
        logger.warning("%s: %d, first %s", what, len(shared), shared[0])
    without = [path for labels, path in expected.items() if not os.path.lexists(labels)]
    if without:
        what = "images without a label file, taken as without objects"
        logger.warning("%s: %d, first %s", what, len(without), without[0])
    beside = {path.with_suffix(".txt") for path in images} - expected.keys()
    if twice := sorted(filter(os.path.lexists, beside)):
        what = "label files beside their images, not read, as there are others in labels"
        logger.warning("%s: %d, first %s", what, len(twice), twice[0])
    there = {path for folder in {path.parent for path in expected} for path in folder.glob("*.txt")}
    there |= {path for folder in folders for path in files_below(folder) if path.suffix == ".txt"}
    # Label tools put the names of the classes among the labels.
    orphans = sorted(path for path in there - expected.keys() if path.name != "classes.txt")
    if orphans:
        logger.warning("label files without an image: %d, first %s", len(orphans), orphans[0])


def warn_of_other_names(names: Sequence[str], source: Path, folders: Iterable[Path]) -> None:
    """Label tools number classes by a list of their own, which stays beside what they wrote."""
    lists = {folder / name for folder in {*folders, source.parent} for name in _NAME_LISTS}
    for path in sorted(filter(os.path.isfile, lists - {source})):
        try:
            listed = [line for line in lines_of(path) if line]
        except UserError as error:  # nothing is read of it but this
            logger.warning("%s", error)
            continue
        if listed != names[: len(listed)]:
            logger.warning(
                "%s: names other classes, or in another order, than %s, which is gone by: %s",
                *(path, source.name, ", ".join(listed[:5])),
            )


def point_values(shape: Any, source: Path) -> int:
    """Values of points behind each box, of data for poses; 0 for others."""
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)):
        raise UserError(f"{source}: kpt_shape: expected [points, 2 or 3], got {shape!r}")
    return int(shape[0] * shape[1])


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, without space at their ends.

    Raises:
        UserError: it cannot be read.
    """
    try:
        # The mark that some editors put at a file's beginning is no part of it.
        return [line.strip() for line in read_file(path).decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read this text file: {reason}") from error
