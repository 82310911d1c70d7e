"""How well a network, or several together, classify."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backbones.common import distributed
from backbones.common.device import ResolvedPrecision, autocast
from backbones.common.errors import UserError
from backbones.common.progress import track
from backbones.data.datasets import EvaluationImages, ImageBatch, collate
from backbones.data.multi_crop import CropCount
from backbones.data.sources import ImageSource
from backbones.data.workers import WorkerLoader, lost_workers_are_errors
from backbones.networks.inception import InceptionV3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Of the N images that can be read, on the CPU."""

    probabilities: Tensor
    """`float32 [N, K]`."""
    labels: Tensor
    """`int64 [N]`."""
    names: list[str]
    """Files."""
    skipped: list[str]
    """Error messages of unreadable images."""


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    name: str
    images: int
    """That have it as label."""
    top1: float
    """Share of them for which it is the most probable."""
    taken_for: list[tuple[str, int]]
    """Other classes that its images were taken for, with their number, most first."""


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
        first, five = _hits(logits, labels)
        count, top1, top5 = count + len(labels), top1 + first, top5 + five
    sums = distributed.sum_over_processes({"count": count, "top1": top1, "top5": top5})
    count = round(sums.pop("count"))
    skipped = [message for part in distributed.gather(skipped) for message in part]
    if skipped:
        logger.warning("left out %d unreadable images, first: %s", len(skipped), skipped[0])
    if count == 0:
        return {"top1": float("nan"), "top5": float("nan")}
    return {name: total / count for name, total in sums.items()}


@torch.no_grad()
def predict(
    model: InceptionV3,
    source: ImageSource,
    crops: CropCount = 1,
    *,
    batch_size: int = 32,
    workers: int = 0,
    precision: ResolvedPrecision = "fp32",
) -> Predictions:
    """Probabilities of all images, averaged over the crops of each; shows its progress.

    `model` is in evaluation mode, on its device; `batch_size` crops go through it at once, and
    `workers` processes read images.

    Raises:
        UserError: no image can be read.
    """
    spec, device = model.spec, next(model.parameters()).device

    def probabilities(images: Tensor) -> Tensor:
        results = []
        for part in images.reshape(-1, *images.shape[-3:]).split(batch_size):
            inputs = part.to(device).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                logits = model(inputs)
            results.append(logits.float().softmax(dim=1))
        return torch.cat(results).unflatten(0, (len(images), crops)).mean(dim=1).cpu()

    loader = WorkerLoader(
        EvaluationImages(source, spec.input_size, spec.crop_fraction, spec.interpolation, crops),
        batch_size=max(batch_size // crops, 1),
        num_workers=workers,
        collate_fn=collate,
    )
    scores: list[Tensor] = []
    labels: list[Tensor] = []
    names: list[str] = []
    skipped: list[str] = []
    with lost_workers_are_errors():
        for batch in track(loader, len(source), "evaluate", size=_images_read):
            skipped += batch.skipped
            names += batch.names
            if len(batch.labels):
                scores.append(probabilities(batch.images))
                labels.append(batch.labels)
    if not scores:
        raise UserError(f"none of the {len(source)} images can be read: {skipped[0]}")
    return Predictions(torch.cat(scores), torch.cat(labels), names, skipped)


def _images_read(batch: ImageBatch) -> int:
    return len(batch.names) + len(batch.skipped)


def average(predictions: Sequence[Predictions]) -> Predictions:
    """Those of an ensemble: the mean of its networks' probabilities; raises `UserError` where they
    are not of the same images."""
    first = predictions[0]
    for other in predictions[1:]:
        if other.names != first.names:
            raise UserError(
                f"an image could be read for one network and not for another: {len(first.names)} "
                f"and {len(other.names)} images: evaluate again"
            )
    mean = torch.stack([each.probabilities for each in predictions]).mean(dim=0)
    return Predictions(mean, first.labels, first.names, first.skipped)


def top_scores(predictions: Predictions) -> dict[str, float]:
    """`top1` and `top5` in [0, 1]."""
    first, five = _hits(predictions.probabilities, predictions.labels)
    return {"top1": first / len(predictions.labels), "top5": five / len(predictions.labels)}


def _hits(scores: Tensor, labels: Tensor) -> tuple[int, int]:
    """Of scores `[N, K]`: how often the label has the highest, and one of the five highest."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return int(best[:, 0].sum()), int(best.sum())


def class_scores(predictions: Predictions, class_names: Sequence[str]) -> list[ClassScore]:
    """The classes that have images, the worst first."""
    confusions: dict[int, Counter[int]] = {}
    best = predictions.probabilities.argmax(dim=1)
    for label, predicted in zip(predictions.labels.tolist(), best.tolist(), strict=True):
        confusions.setdefault(label, Counter())[predicted] += 1
    scores = []
    for label, counts in confusions.items():
        images = counts.total()
        taken_for = [(class_names[other], n) for other, n in counts.most_common() if other != label]
        scores.append(ClassScore(class_names[label], images, counts[label] / images, taken_for))
    return sorted(scores, key=lambda score: (score.top1, score.name))
