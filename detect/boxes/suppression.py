"""Non-maximum suppression, hard and soft, of boxes of which only the best are wanted.

Glossary: N boxes `float32 [N, 4]` xyxy in pixels, D of them that are left.
"""

from itertools import pairwise

import numpy as np
from torch import Tensor
from torchvision.ops import batched_nms, nms

FEW = 256
"""Boxes up to which soft suppression compares all of a class with each other at once; what is taken
of more is compared with its rivals when it is, as most are never taken."""


def hard_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_thresh: float, *, limit: int
) -> Tensor:
    """What torchvision's `nms`, or with labels `batched_nms`, would give first.

    A box is suppressed by better ones alone, so the best of many can be found among the best: its
    time, which grows with the square of the number of boxes, goes into few of them.

    Boxes of different labels `int64 [N]` leave each other alone.

    Returns:
        Indices `int64 [D]`, best first, D at most `limit`.
    """
    order = scores.argsort(descending=True, stable=True)
    count = 4 * limit
    while True:
        best = order[:count]
        if labels is None:
            left = nms(boxes[best], scores[best], iou_thresh)
        else:
            left = batched_nms(boxes[best], scores[best], labels[best], iou_thresh)
        if len(left) >= limit or count >= len(order):
            return best[left[:limit]]
        count *= 4


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    sigma: float,
    score_thresh: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    """Gaussian soft non-maximum suppression (Bodla et al. 2017).

    Takes the best box again and again; the scores of the others of its class are multiplied by
    exp(-IoU² / sigma) instead of being set to zero, so that a neighbour of the same class is found
    with a lower score instead of not at all.

    It ends when no box has the score `score_thresh` any more, or after `limit` boxes.

    Returns:
        Indices `int64 [D]` of the boxes taken and their lowered scores `[D]`, best first.
    """
    # One box after the other: many small steps, each of which costs NumPy a tenth of what it costs
    # PyTorch, and a GPU far more. Those of a class lie together, so that rivals are a slice.
    order = labels.argsort(stable=True).cpu()
    corners = boxes.detach().cpu()[order].numpy().T.copy()
    left = scores.detach().cpu()[order].numpy()
    _, starts = np.unique(labels.cpu()[order].numpy(), return_index=True)
    group = np.searchsorted(starts, np.arange(len(left)), side="right") - 1
    rivals = [slice(*ends) for ends in pairwise([*starts.tolist(), len(left)])]
    low, high = corners[:2], corners[2:]
    area = (high - low).prod(axis=0)

    def decay(of: slice, taken: slice) -> np.ndarray:
        """What the scores of some are multiplied by when one is taken, a row for each of these."""
        sides = np.minimum(high[:, None, of], high[:, taken, None])
        sides -= np.maximum(low[:, None, of], low[:, taken, None])
        np.maximum(sides, 0, out=sides)
        shared = sides[0] * sides[1]
        iou = shared / (area[of] + area[taken, None] - shared)
        # Above zero: what is taken has the score -inf, which zero would make no number.
        return np.maximum(np.exp(iou * iou / -sigma), 1e-30)

    decays: dict[int, np.ndarray] = {}
    chosen: list[int] = []
    found: list[float] = []
    while len(chosen) < min(limit, len(left)):
        best = int(left.argmax())
        if left[best] < score_thresh:
            break
        chosen.append(best)
        found.append(float(left[best]))
        of = rivals[group[best]]
        if len(left) > FEW:
            left[of] *= decay(of, slice(best, best + 1))[0]
        else:
            if of.start not in decays:
                decays[of.start] = decay(of, of)
            left[of] *= decays[of.start][best - of.start]
        left[best] = -np.inf
    return order[chosen].to(scores.device), scores.new_tensor(found)
