"""Detections in COCO's results format."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detect.datasets import DetectionDataset


def coco_results(
    detections: Mapping[str, Tensor], image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results file.

    Args:
        detections: `boxes` `[D, 4]` xyxy in pixels, `labels` `int64 [D]` in 1..K, `scores` `[D]`.
        image_id: of the image.
        category_ids: `category_ids[k - 1]` is written for label `k`.

    Returns:
        One dict for each detection: `image_id`, `category_id`, `bbox` as x, y, width, height,
        `score`.
    """
    boxes = detections["boxes"].detach().cpu().double()
    corner, size = boxes[:, :2].tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist()
    rows = zip(
        corner, size, detections["labels"].tolist(), detections["scores"].tolist(), strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [*xy, *wh],
            "score": score,
        }
        for xy, wh, label, score in rows
    ]


def to_coco_results(
    dataset: DetectionDataset, detections: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Any]]:
    """The detections of a whole dataset, one dict an image in its order, as COCO results.

    Raises:
        ValueError: there are not as many entries as images.
    """
    check_one_per_image(dataset, detections)
    return [
        result
        for image_id, found in zip(dataset.image_ids, detections, strict=True)
        for result in coco_results(found, image_id, dataset.category_ids)
    ]


def check_one_per_image(dataset: DetectionDataset, detections: Sequence[Any]) -> None:
    """Raise a ValueError if there is not one entry for each image."""
    if len(detections) != len(dataset):
        raise ValueError(
            f"expected one entry for each of {len(dataset)} images, got {len(detections)}"
        )
