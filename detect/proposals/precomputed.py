"""Proposals made beforehand, by another program or a detector: files in COCO results format."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import clip_boxes_to_image

from backbones.common.errors import UserError
from backbones.common.files import write_errors, write_json
from detect.data import DetectionDataset
from detect.data.cleaning import warn_of_reach
from detect.data.results_file import ids_by_name, read_results
from detect.proposals.base import Proposals


def load_proposals(
    path: str | Path, datasets: Sequence[DetectionDataset] | None = None
) -> dict[int, Proposals]:
    """Read `[{"image_id": 1, "bbox": [x, y, w, h], "score": 0.9}, ...]`.

    Where entries have a `file_name`, and `datasets` are given, they are of the image of that name
    there, whatever its id: ids move where files are added or removed.

    `category_id` may be present and is ignored: proposals are class-agnostic. Boxes without area
    are left out with a warning, for they would be a crop of nothing.

    Returns:
        By image id, boxes in xyxy pixels, best first.

    Raises:
        UserError: missing file, not JSON, not a list of results, a score outside [0, 1]; the
            message names file and entry.
    """
    grouped: dict[int, list[tuple[float, list[float]]]] = {}
    named = None if datasets is None else ids_by_name(datasets)
    for result in read_results(path, "proposals", named, others=True):
        if not 0 <= result.score <= 1:
            raise UserError(
                f"{result.where}: expected a score from 0 to 1, a probability, got {result.score}"
            )
        grouped.setdefault(result.image_id, []).append((result.score, result.box))
    return {image_id: _sorted(rows) for image_id, rows in grouped.items()}


def _sorted(rows: list[tuple[float, list[float]]]) -> Proposals:
    rows = sorted(rows, key=lambda row: -row[0])
    boxes = torch.tensor([box for _, box in rows], dtype=torch.float32)
    return Proposals(boxes, torch.tensor([score for score, _ in rows], dtype=torch.float32))


def check_replaceable(path: str | Path) -> None:
    """Raise `UserError` where something is at `path` that `save_proposals` has not written."""
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder: name the file to write")
    if not os.path.lexists(path):
        return
    head = b""
    if os.path.isfile(path):
        with write_errors(path), open(path, "rb") as file:
            head = file.read(64)
    # Results of detectors have a category before the box.
    if not re.match(rb'\[\]$|\[\{"image_id": -?\d+, "bbox": ', head):
        raise UserError(
            f"{path}: is there already, and is no file of proposals that was written here: delete "
            "it, or name another output"
        )


def save_proposals(
    path: str | Path,
    proposals: Mapping[int, Proposals],
    datasets: Iterable[DetectionDataset] = (),
) -> None:
    """Write proposals by image id as `load_proposals` reads them, with the file names of the images
    in `datasets` where no two have the same; a file there is replaced.

    An image without proposals leaves no trace in the file, and `proposals_for` then refuses it.
    """
    ids = ids_by_name(datasets)
    names = {image_id: {"file_name": name} for name, image_id in ids.items()}
    if None in names:
        names = {}
    entries = []
    for image_id, (boxes, scores) in proposals.items():
        corners = boxes.double()
        xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        for box, score in zip(xywh.tolist(), scores.tolist(), strict=True):
            entry = {"image_id": image_id, "bbox": box, "score": score}
            entries.append(entry | names.get(image_id, {}))
    write_json(path, entries)


def proposals_for(
    proposals: Mapping[int, Proposals], datasets: Sequence[DetectionDataset]
) -> dict[int, Proposals]:
    """The precomputed proposals of all images of some datasets, cut off at their images' borders.

    What lies outside its image altogether is dropped; warnings count that, and what reaches far
    beyond.

    Raises:
        UserError: an image has no entry, which is more likely a wrong file than an image without
            any proposal; or two different images have the same id, and so the same proposals.
    """
    owners: dict[int, str] = {}
    reaching: list[tuple[np.ndarray, np.ndarray, str]] = []
    found: dict[int, Proposals] = {}
    for sample in (sample for dataset in datasets for sample in dataset):
        if sample.image_id not in proposals:
            raise UserError(
                f"{sample.path}: no precomputed proposals for image id {sample.image_id}"
            )
        owner = owners.setdefault(sample.image_id, sample.path)
        if owner != sample.path:
            raise UserError(
                f"{sample.path} and {owner} both have the image id {sample.image_id}: precomputed "
                "proposals need ids that are unique across the splits"
            )
        boxes, scores = proposals[sample.image_id]
        size = sample.width, sample.height
        far = (torch.maximum(-boxes, boxes - boxes.new_tensor([*size, *size])) > 0).any(dim=1)
        if bool(far.any()):
            ends = np.tile(size, (int(far.sum()), 2))
            reaching.append((boxes[far].numpy(), ends, sample.path))
        boxes = clip_boxes_to_image(boxes, (sample.height, sample.width))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        found[sample.image_id] = Proposals(boxes[inside], scores[inside])
    if reaching:
        beyond, ends_of, paths = zip(*reaching, strict=True)
        places = [path for path, those in zip(paths, beyond, strict=True) for _ in those]
        warn_of_reach(
            *(np.concatenate(beyond), np.concatenate(ends_of), "precomputed proposals"),
            lambda number: f"of {places[number]}",
        )
    return found
