"""What share of the objects an image's first proposals find."""

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

    A proposal finds one object, and an object is found once, as in COCO's average recall without
    classes: by falling score each proposal takes the object that it overlaps most of those left.

    Args:
        dataset: ground truth; crowds and VOC's difficult objects do not count.
        boxes: for each image in the dataset's order `float32 [P_i, 4]` xyxy, the best first.

    Returns:
        For each of `COUNTS` up to the most proposals that an image has, and for that number:
        `count` and, by IoU, `recall_50` and `recall_70`; None without objects.
    """
    objects = 0
    ranks: dict[float, list[int]] = {threshold: [] for threshold in IOU_THRESHOLDS}
    for sample, image_boxes in zip(dataset, boxes, strict=True):
        of_image = sample.boxes[~(sample.crowd | sample.difficult)]
        objects += len(of_image)
        iou = box_iou(image_boxes.cpu().double(), of_image.double())
        for threshold, found in ranks.items():
            found += _finding_ranks(iou, threshold)
    most = max((len(image_boxes) for image_boxes in boxes), default=0)
    rows = []
    for count in sorted({*(count for count in COUNTS if count < most), most}):
        row: dict[str, Any] = {"count": count}
        for threshold, found in ranks.items():
            share = sum(rank < count for rank in found) / objects if objects else None
            row[f"recall_{round(100 * threshold)}"] = share
        rows.append(row)
    return rows


def _finding_ranks(iou: Tensor, threshold: float) -> list[int]:
    """Which proposals, counted from 0, find an object of their own: `iou` is `[P, G]`.

    What a proposal takes does not depend on those after it, so the first n of a longer list find
    what they find alone.
    """
    iou = torch.where(iou >= threshold, iou, -1.0)
    ranks = []
    for rank in torch.nonzero((iou > 0).any(dim=1)).flatten().tolist():
        # The last of equal ones, as pycocotools takes it.
        best = iou.shape[1] - 1 - int(iou[rank].flip(0).argmax())
        if iou[rank, best] > 0:
            ranks.append(rank)
            iou[:, best] = -1.0
    return ranks
