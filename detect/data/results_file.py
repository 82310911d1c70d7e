"""Reading files in COCO's results format: other detectors' results, and precomputed proposals."""

import logging
import math
import operator
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from backbones.common.errors import UserError
from backbones.common.listing import one_form
from backbones.common.read_json import read_json
from detect.data.sample import DetectionDataset

logger = logging.getLogger(__name__)


class Result(NamedTuple):
    """One entry.

    Attributes:
        image_id: as in the file, or of the image that the entry names.
        box: x1, y1, x2, y2 in pixels, finite and of positive area.
        score: finite.
        entry: the entry itself, for keys that not all uses have.
        where: file and number of the entry, for messages.
    """

    image_id: int
    box: list[float]
    score: float
    entry: dict[str, Any]
    where: str


def read_results(
    path: str | Path,
    what: str,
    named: Mapping[str, int | None] | None = None,
    *,
    others: bool = False,
) -> Iterator[Result]:
    """Read `[{"image_id": 1, "bbox": [x, y, w, h], "score": 0.9, ...}, ...]`.

    Boxes without area are left out, with one warning that counts them.

    Args:
        path: the file.
        what: it holds, for messages: `proposals`, `results`.
        named: as from `ids_by_name`, for entries with a `file_name`: programs such as Ultralytics
            number images in a way of their own.
        others: entries of files that `named` has not are left out; else they count by `image_id`,
            which a warning says.

    Raises:
        UserError: missing file, not JSON, not a list of results, none beyond the first pixel of
            its image, or all of files that `named` has not; the message names file and entry.
    """
    path = Path(path)
    entries = read_json(path, what)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of COCO results, got {type(entries).__name__}")
    without_area, unknown = list[int](), list[int]()
    farthest = -math.inf
    for i, entry in enumerate(entries):
        where = f"{path}: entry {i}"
        try:
            x, y, w, h = (_number(value) for value in entry["bbox"])
            score, file = _number(entry["score"]), entry.get("file_name")
            of_file = None
            if named is not None and file is not None:
                name = file_key(str(file).replace("\\", "/"))
                if others and name not in named:
                    continue
                if name not in named:
                    unknown.append(i)
                of_file = named.get(name)
            image_id = whole_number(entry["image_id"]) if of_file is None else of_file
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"{where} must have a whole number as image_id, bbox [x, y, w, h] and a number as "
                f"score, got {_shown(entry)}"
            ) from error
        # What is finite here may be infinite in the fp32 that it becomes.
        if not all(abs(number) < 1e9 for number in (x, y, w, h, score)):
            raise UserError(
                f"{where} must have finite numbers, got {entry['bbox']} and score {score}"
            )
        if not (w > 0 and h > 0):
            without_area.append(i)
            continue
        farthest = max(farthest, x + w, y + h)
        yield Result(image_id, [x, y, x + w, y + h], score, entry, where)
    if unknown and len(unknown) == len(entries):
        raise UserError(f"{path}: no file_name of its entries is in the dataset: is it of another?")
    if unknown:
        logger.warning(
            "%s: entries with a file_name that is not in the dataset, taken by image_id: %d, first "
            "entry %d",
            *(path, len(unknown), unknown[0]),
        )
    if without_area:
        logger.warning(
            "%s: %s left out for a bbox without area: %d, first entry %d",
            *(path, what, len(without_area), without_area[0]),
        )
    if -math.inf < farthest <= 1:
        raise UserError(
            f"{path}: expected boxes in pixels, got none beyond the first pixel of its image: are "
            "these fractions of the image's sides?"
        )


def file_key(path: str) -> str:
    """A file's name without folders, in one form."""
    return one_form(PurePosixPath(path).name)


def ids_by_name(datasets: Iterable[DetectionDataset]) -> dict[str, int | None]:
    """Ids of images by the `file_key` of their files; None where two have the same."""
    found: dict[str, int | None] = {}
    for dataset in datasets:
        for path, image_id in zip(dataset.paths, dataset.image_ids, strict=True):
            name = file_key(path)
            found[name] = None if name in found else image_id
    return found


def whole_number(value: Any) -> int:
    """An id; some exports write 1.0 for 1.

    Raises:
        TypeError, ValueError: it is no whole number.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _shown(entry: Any) -> str:
    """As much of an entry as a message has room for."""
    text = repr(entry)
    return text if len(text) <= 120 else f"{text[:120]}..."
