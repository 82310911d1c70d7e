"""How well a network classifies."""

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from backbones import distributed
from backbones.images import ImageBatch

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate_classifier(
    classify: Callable[[Tensor], Tensor], batches: Iterable[ImageBatch]
) -> dict[str, float]:
    """Share of images whose label has the highest logit, or one of the five highest.

    With several processes each gives its own part of the images, and all get the same result.
    Counts each image once; unreadable ones are left out of the share and warned of.

    Args:
        classify: takes `uint8 [N, 3, S, S]` on the CPU and gives logits `[N, K]`.
        batches: of one pass over the images.

    Returns:
        `top1` and `top5` in [0, 1]; NaN where there is no image.
    """
    count, top1, top5 = 0, 0, 0
    skipped: list[str] = []
    for batch in batches:
        skipped += batch.skipped
        if len(batch.labels) == 0:
            continue
        logits = classify(batch.images)
        labels = batch.labels.to(logits.device)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        count += len(labels)
        top1 += int(best[:, 0].sum())
        top5 += int(best.sum())
    sums = distributed.sum_over_processes({"count": count, "top1": top1, "top5": top5})
    count = round(sums.pop("count"))
    if skipped:
        logger.warning("left out %d unreadable images, first: %s", len(skipped), skipped[0])
    if count == 0:
        return {"top1": float("nan"), "top5": float("nan")}
    return {name: total / count for name, total in sums.items()}
