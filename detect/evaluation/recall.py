"""What share of the objects an image's first proposals find."""

from collections.abc import Sequence
from itertools import pairwise
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
            found += [rank for rank, _ in _finding(iou, threshold)]
    most = max((len(image_boxes) for image_boxes in boxes), default=0)
    rows = []
    for count in sorted({*(count for count in COUNTS if count < most), most}):
        row: dict[str, Any] = {"count": count}
        for threshold, found in ranks.items():
            share = sum(rank < count for rank in found) / objects if objects else None
            row[f"recall_{round(100 * threshold)}"] = share
        rows.append(row)
    return rows


def recall_by_size(
    dataset: DetectionDataset,
    boxes: Sequence[Tensor],
    sides: Sequence[float],
    factors: Sequence[float] | None = None,
) -> list[float | None]:
    """Share of the objects of each size that proposals find at IoU 0.5, one for each at most.

    Args:
        dataset: as in `proposal_recall`.
        boxes: likewise.
        sides: rising borders between sizes in pixels, a size being the root of an object's area.
        factors: of each image, by which sizes are larger than in its pixels; None for 1.

    Returns:
        For each pair of neighbours; None without objects.
    """
    sizes, found = [], []
    for index, (sample, image_boxes) in enumerate(zip(dataset, boxes, strict=True)):
        counts = ~(sample.crowd | sample.difficult)
        iou = box_iou(image_boxes.cpu().double(), sample.boxes[counts].double())
        is_found = torch.zeros(int(counts.sum()), dtype=torch.bool)
        is_found[[place for _, place in _finding(iou, 0.5)]] = True
        sizes.append(sample.area[counts].sqrt() * (1.0 if factors is None else factors[index]))
        found.append(is_found)
    every, of_all = torch.cat(sizes), torch.cat(found).double()
    shares = []
    for low, high in pairwise(sides):
        own = of_all[(every >= low) & (every < high)]
        shares.append(float(own.mean()) if len(own) else None)
    return shares


def _finding(iou: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Which proposals find an object of their own, and which one: `iou` is `[P, G]`.

    What a proposal takes does not depend on those after it, so the first n of a longer list find
    what they find alone.
    """
    iou = torch.where(iou >= threshold, iou, -1.0)
    pairs = []
    for rank in torch.nonzero((iou > 0).any(dim=1)).flatten().tolist():
        # The last of equal ones, as pycocotools takes it.
        best = iou.shape[1] - 1 - int(iou[rank].flip(0).argmax())
        if iou[rank, best] > 0:
            pairs.append((rank, best))
            iou[:, best] = -1.0
    return pairs
