"""Reading files in COCO's results format: other detectors' results, and precomputed proposals."""

import json
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from backbones.common.errors import UserError


class Result(NamedTuple):
    """One entry.

    Attributes:
        image_id: as in the file.
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


def read_results(path: str | Path, what: str) -> Iterator[Result]:
    """Read `[{"image_id": 1, "bbox": [x, y, w, h], "score": 0.9, ...}, ...]`.

    Args:
        path: the file.
        what: it holds, for messages: `proposals`, `results`.

    Raises:
        UserError: missing file, not JSON, not a list of results, or a box without area; the message
            names file and entry.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read {what}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {what} are not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of COCO results, got {type(entries).__name__}")
    for i, entry in enumerate(entries):
        where = f"{path}: entry {i}"
        try:
            x, y, w, h = (float(value) for value in entry["bbox"])
            image_id, score = operator.index(entry["image_id"]), float(entry["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{where} must have image_id, bbox [x, y, w, h] and score: {error!r}"
            ) from error
        if not (w > 0 and h > 0 and all(map(math.isfinite, (x, y, w, h, score)))):
            raise UserError(
                f"{where} must have finite numbers and a bbox with area, got "
                f"{entry['bbox']} and score {score}"
            )
        yield Result(image_id, [x, y, x + w, y + h], score, entry, where)
