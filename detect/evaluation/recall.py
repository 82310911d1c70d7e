"""What share of the objects any of an image's first proposals finds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detect.data import DetectionDataset

COUNTS = (1, 2, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)
IOU_THRESHOLDS = (0.5, 0.7)


def proposal_recall(dataset: DetectionDataset, boxes: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Recall by the number of proposals, whatever the objects' classes.

    Args:
        dataset: ground truth; crowds and VOC's difficult objects do not count.
        boxes: for each image in the dataset's order `float32 [P_i, 4]` xyxy, the best first.

    Returns:
        For each of `COUNTS` up to the most proposals that an image has, and for that number:
        `count` and, by IoU, `recall_50` and `recall_70`; None without objects.
    """
    best_rank: dict[float, list[Tensor]] = {threshold: [] for threshold in IOU_THRESHOLDS}
    for sample, image_boxes in zip(dataset, boxes, strict=True):
        objects = sample.boxes[~(sample.crowd | sample.difficult)]
        # A last column that covers all objects stands for "by none".
        none = torch.ones(len(objects), 1, dtype=torch.bool)
        iou = box_iou(objects, image_boxes.cpu())
        for threshold, ranks in best_rank.items():
            found = torch.cat([iou >= threshold, none], dim=1).to(torch.uint8).argmax(dim=1)
            ranks.append(torch.where(found < len(image_boxes), found, torch.iinfo(torch.int64).max))
    most = max((len(image_boxes) for image_boxes in boxes), default=0)
    rows = []
    for count in sorted({*(count for count in COUNTS if count < most), most}):
        row: dict[str, Any] = {"count": count}
        for threshold, ranks in best_rank.items():
            found = torch.cat(ranks) < count if ranks else torch.zeros(0)
            share = found.float().mean().item() if len(found) else None
            row[f"recall_{round(100 * threshold)}"] = share
        rows.append(row)
    return rows
