"""What a network for small images keeps of weights for 299 pixels, before it is trained at all.

Networks stay as they start, and a linear classifier is fitted to their pooled features.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.progress import track
from backbones.common.ranges import check_ranges
from backbones.data.datasets import EvaluationImages, collate
from backbones.data.sources import ImageSource, open_split
from backbones.deployment.pytorch import deploy
from backbones.networks.enlargement import (
    STEM_KERNELS,
    fold_enlargement,
    repeat_pixels,
    start_stem,
)
from backbones.networks.inception import InceptionV3
from backbones.networks.pretrained import read_weights
from backbones.networks.specs import SPECS
from backbones.networks.statistics import match_enlarged
from backbones.networks.warm_start import start_narrow, warm_start

SIZE = 79
"""Side in pixels of the images that all networks are given, enlarged for some."""

ALPHAS = np.logspace(0, 6, 13)
"""Regularisations that leaving one training image out chooses from."""

BATCH = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeConfig:
    """One comparison."""

    weights: str = "torchvision:IMAGENET1K_V1"
    """Weights for 299 pixels, by name or file, as of `train_backbone --model.weights`."""
    root: str = "data/imagenet"
    """Images, as of `train_backbone --data.root`: `train` fits the classifier, `val` scores it."""
    classes: int = 45
    """The first so many classes."""
    per_class: int = 50
    """Training images of a class, drawn by the seed."""
    seed: int = 0
    """Seed of the choice of training images and of what starts at random."""
    width: float = 1.0
    """Width multiplier of the networks that start from weights of full width: 0.25 to 1.0."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"[2, inf)": "classes per_class"})


@dataclass(frozen=True)
class ProbeRow:
    """Shares of validation images that are classified right, after the A, B and C blocks."""

    start: str
    accuracy: tuple[float, float, float]
    right: np.ndarray = field(repr=False)
    """`bool [3, N]`, of each validation image."""


def probe_starts(config: ProbeConfig) -> list[ProbeRow]:
    """Probe `inception_v3_79` started in several ways, and what it is to come near to.

    A narrow one has one way: see `backbones.networks.narrowing`.

    Raises:
        UserError: data or weights are not as the configuration says.
    """
    source = open_split(config.root, "train")
    train, train_labels = _images(config, source, "train")
    source = open_split(config.root, "val", source.class_names)
    val, val_labels = _images(config, source, "val")
    rows = []
    for start, (network, view) in _starts(config).items():
        of_train, of_val = (
            _features(network, images, view, f"{start}, {split}")
            for split, images in (("train", train), ("val", val))
        )
        right = np.stack(
            [
                make_pipeline(StandardScaler(), RidgeClassifierCV(ALPHAS))
                .fit(own, train_labels)
                .predict(new)
                == val_labels
                for own, new in zip(of_train, of_val, strict=True)
            ]
        )
        a, b, c = right.mean(axis=1)
        rows.append(ProbeRow(start, (float(a), float(b), float(c)), right))
        logger.info("%s: %.3f, %.3f, %.3f after the A, B and C blocks", start, a, b, c)
    return rows


def format_probe(rows: Sequence[ProbeRow]) -> str:
    """A Markdown table, with the standard error of each share and of its difference to `copied`,
    or where that is no row to the first one."""
    base = next((row for row in rows if row.start == "copied"), rows[0])
    count = base.right.shape[1]
    lines = ["| start | after A | after B | after C |", "| --- | --- | --- | --- |"]
    for row in rows:
        change = row.right.astype(float) - base.right
        cells = [
            f"{share:.3f} ± {(share * (1 - share) / count) ** 0.5:.3f} "
            f"({moved.mean():+.3f} ± {moved.std() / count**0.5:.3f})"
            for share, moved in zip(row.accuracy, change, strict=True)
        ]
        lines.append(f"| {row.start} | {' | '.join(cells)} |")
    return "\n".join(lines)


View = Callable[[Tensor], Tensor]
"""`uint8 [N, 3, 79, 79]` as a network is given it."""


def _starts(config: ProbeConfig) -> dict[str, tuple[InceptionV3, View]]:
    """Networks with what they are given, by how they start."""
    given = read_weights(config.weights)
    if given.spec is None or given.spec.name != "inception_v3":
        raise UserError(f"{config.weights}: expected weights of inception_v3, for 299 pixels")
    state, spec, first = given.state, given.spec, STEM_KERNELS[0]

    def network(name: str, weights: dict[str, Tensor] | None, width: float = 1.0) -> InceptionV3:
        torch.manual_seed(config.seed)
        own = replace(SPECS[name], mean=spec.mean, std=spec.std)
        model = InceptionV3(own, num_classes=0, width=width)
        if weights is not None:
            warm_start(model, weights, gaps=True)
        return model.eval()

    def adapted(name: str) -> InceptionV3:
        return network(name, start_stem(state, spec, SPECS[name])[0])

    folded = {**state, first: fold_enlargement(state[first])}
    averaged, started = adapted("inception_v3_79"), adapted("inception_v3_79")
    match_enlarged(started, state, spec)
    exact = (adapted("inception_v3_151"), repeat_pixels)
    if config.width < 1:
        narrow = network("inception_v3_79", None, config.width)
        start_narrow(narrow, state, spec, gaps=True)
        return {
            f"width {config.width:g}, random": (
                network("inception_v3_79", None, config.width),
                _as_it_is,
            ),
            f"width {config.width:g}, narrowed": (narrow, _as_it_is),
            "width 1, phases averaged, normalisation matched": (started, _as_it_is),
            "width 1, `inception_v3_151`, image twice as large": exact,
        }
    return {
        "random": (network("inception_v3_79", None), _as_it_is),
        "copied": (network("inception_v3_79", state), _as_it_is),
        "first kernel folded": (network("inception_v3_79", folded), _as_it_is),
        "phases averaged": (averaged, _as_it_is),
        "phases averaged, normalisation matched": (started, _as_it_is),
        "`inception_v3_151`, image twice as large": exact,
        "`inception_v3`, image resized to 299": (network("inception_v3", state), _resized),
    }


def _as_it_is(images: Tensor) -> Tensor:
    return images


def _resized(images: Tensor) -> Tensor:
    size = (SPECS["inception_v3"].input_size,) * 2
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def _images(config: ProbeConfig, source: ImageSource, split: str) -> tuple[Tensor, np.ndarray]:
    """`uint8 [N, 3, 79, 79]` and labels `[N]`: all of a class, or in training so many."""
    labels = np.array(source.labels)
    chosen = np.random.default_rng(config.seed).permutation(len(labels))
    limit = config.per_class if split == "train" else len(labels)
    places = [i for k in range(config.classes) for i in chosen[labels[chosen] == k][:limit]]
    dataset = EvaluationImages(source, SIZE, crop_fraction=1.0)
    batch = collate([dataset[int(place)] for place in places])
    if batch.skipped or not len(batch.labels):
        raise UserError(f"{config.root}, {split}: {(batch.skipped or ['no images'])[0]}")
    return batch.images, batch.labels.numpy()


@torch.inference_mode()
def _features(model: InceptionV3, images: Tensor, view: View, what: str) -> list[np.ndarray]:
    """`float32 [N, C]` after the A, B and C blocks, averaged over the map."""
    network = deploy(model)
    pooled = [
        [stage.float().mean((2, 3)) for stage in network.forward_stages(view(batch))]
        for batch in track(images.split(BATCH), len(images), what, size=len)
    ]
    return [torch.cat(stage).numpy() for stage in zip(*pooled, strict=True)]
