"""Proposals that another program made, read from a file in COCO results format."""

import json
import math
from pathlib import Path

import torch

from backbones.errors import UserError
from detect.proposals.base import Proposals


def load_proposals(path: str | Path) -> dict[int, Proposals]:
    """Read `[{"image_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...]`.

    `category_id` may be present and is ignored: proposals are class-agnostic. Boxes without area
    are an error, for they would be a crop of nothing.

    Returns:
        By image id, boxes in xyxy pixels, best first.

    Raises:
        UserError: missing file, not JSON, not a list of results; the message names file and entry.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read proposals: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: proposals are not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of COCO results, got {type(entries).__name__}")
    grouped: dict[int, list[tuple[float, list[float]]]] = {}
    for i, entry in enumerate(entries):
        try:
            x, y, w, h = (float(value) for value in entry["bbox"])
            image_id, score = int(entry["image_id"]), float(entry["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: entry {i} must have image_id, bbox [x, y, w, h] and score: {error!r}"
            ) from error
        if not (w > 0 and h > 0 and all(map(math.isfinite, (x, y, w, h, score)))):
            raise UserError(
                f"{path}: entry {i} must have finite numbers and a bbox with area, got "
                f"{entry['bbox']} and score {score}"
            )
        grouped.setdefault(image_id, []).append((score, [x, y, x + w, y + h]))
    return {image_id: _sorted(rows) for image_id, rows in grouped.items()}


def _sorted(rows: list[tuple[float, list[float]]]) -> Proposals:
    rows = sorted(rows, key=lambda row: -row[0])
    boxes = torch.tensor([box for _, box in rows], dtype=torch.float32)
    return Proposals(boxes, torch.tensor([score for score, _ in rows], dtype=torch.float32))
