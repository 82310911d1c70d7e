"""The paper's receptive-field experiment (section 9, Table 2) on any data.

Networks of equal compute with receptive fields of 299, 151 and 79 pixels, and the 299 network fed
79 pixels ("naive"), are trained in the same way and compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backbones.benchmarks.timing import time_interleaved
from backbones.classification.evaluation import predict, top_scores
from backbones.classification.pretraining import PretrainConfig, pretrain_in_processes
from backbones.common import distributed
from backbones.common.config import as_base
from backbones.common.device import (
    ResolvedPrecision,
    autocast,
    resolve_device,
    resolve_precision,
)
from backbones.common.errors import UserError
from backbones.common.files import make_folder, write_json
from backbones.common.plots import new_plot, save_plot
from backbones.data.loaders import open_sources
from backbones.networks.checkpoint import load_backbone
from backbones.networks.cost import count_multiply_adds
from backbones.networks.inception import InceptionV3
from backbones.networks.specs import SPECS
from backbones.training.curves import read_curves

VARIANTS = ("inception_v3", "inception_v3_151", "inception_v3_79", "inception_v3_79_naive")

PUBLISHED = {"inception_v3": 0.766, "inception_v3_151": 0.764, "inception_v3_79": 0.752}
"""Top-1 on ImageNet in the paper's Table 2."""

SPEED_BATCH, SPEED_ROUNDS = 16, 7


@dataclass(frozen=True)
class ReceptiveFieldConfig(PretrainConfig):
    """One training for each variant; `model.variant` is set by `variants`."""

    run: str = "runs/receptive_fields"
    """Folder for the comparison, with one run folder for each variant in it."""
    variants: tuple[str, ...] = VARIANTS
    """Networks to compare, names that `create_backbone` knows, each at its own input size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.variants if name not in SPECS]:
            raise UserError(f"variants: unknown backbone {unknown[0]!r}: known: {', '.join(SPECS)}")
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise UserError(f"variants must be different names, got {list(self.variants)}")


@dataclass(frozen=True)
class ReceptiveFieldRow:
    """One network of the comparison."""

    variant: str
    receptive_field: int
    """Side of its input, pixels."""
    multiply_adds: int
    """Of one image."""
    images_per_second: float
    """In evaluation, batches of 16, median; of this machine."""
    top1: float
    """Share of the validation images, in [0, 1], and its standard error."""
    top1_error: float
    difference: float
    """Of `top1` to the first network's, and its standard error on the same images."""
    difference_error: float
    top5: float
    published_top1: float | None
    """On ImageNet in the paper, for comparison."""


def compare_receptive_fields(config: ReceptiveFieldConfig) -> list[ReceptiveFieldRow]:
    """Train and compare; leaves `receptive_fields.json` and `.png` in the run folder.

    All networks have the same data, recipe, seed and number of epochs; the scores are those of the
    last epoch. Standard errors are those of other images for the same weights; other seeds come on
    top. With `resume`, networks that are trained already are not trained again.

    Raises:
        UserError: see `pretrain_in_processes`; or several processes were started.
    """
    distributed.require_one_process("this comparison")
    folder = make_folder(config.run)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    models: dict[str, InceptionV3] = {}
    # The cheapest, which the paper lists last, first: mistakes show within minutes.
    for variant in reversed(config.variants):
        run = folder / variant
        pretrain_in_processes(_for_variant(config, variant, run))
        model = load_backbone(run / "last.safetensors")
        models[variant] = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    speeds = _images_per_second(models, device, precision)
    predictions = {
        variant: predict(
            model,
            open_sources(config.data).val,
            batch_size=config.batch_size,
            workers=config.workers,
            precision=precision,
        )
        for variant, model in models.items()
    }
    right = {
        variant: (each.probabilities.argmax(dim=1) == each.labels).double().numpy()
        for variant, each in predictions.items()
    }
    base = right[config.variants[0]]
    rows = [
        ReceptiveFieldRow(
            variant=variant,
            receptive_field=models[variant].input_size,
            multiply_adds=count_multiply_adds(models[variant], models[variant].input_size),
            images_per_second=speeds[variant],
            top1_error=_standard_error(right[variant]),
            difference=float(np.mean(right[variant] - base)),
            difference_error=_standard_error(right[variant] - base),
            **top_scores(predictions[variant]),
            published_top1=PUBLISHED.get(variant),
        )
        for variant in config.variants
    ]
    write_json(folder / "receptive_fields.json", [asdict(row) for row in rows], indent=2)
    draw_comparison(rows, folder)
    return rows


def format_table(rows: Sequence[ReceptiveFieldRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | input | multiply-adds (G) | images/s | top-1 | to the first | top-5 "
        "| paper (ImageNet) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        published = "" if row.published_top1 is None else f"{100 * row.published_top1:.1f} %"
        lines.append(
            f"| `{row.variant}` | {row.receptive_field} | {row.multiply_adds / 1e9:.3f} "
            f"| {row.images_per_second:.0f} | {100 * row.top1:.1f} ± {100 * row.top1_error:.1f} % "
            f"| {100 * row.difference:+.1f} ± {100 * row.difference_error:.1f} "
            f"| {100 * row.top5:.1f} % | {published} |"
        )
    return "\n".join(lines)


def draw_comparison(rows: Sequence[ReceptiveFieldRow], folder: Path) -> None:
    """Draw `receptive_fields.png`: top-1 of each network, and how it came about."""
    plot = new_plot(10, 3.8)
    bars, curves = plot.subplots(1, 2)
    for index, row in enumerate(rows):
        colour = f"C{index}"
        bars.bar(index, 100 * row.top1, color=colour, yerr=100 * row.top1_error, capsize=4)
        top = 100 * (row.top1 + row.top1_error)
        bars.text(index, top, f"{100 * row.top1:.1f}", ha="center", va="bottom")
        points = [
            point
            for point in read_curves(folder / row.variant / "curves.csv")
            if point.name == "val/top1"
        ]
        label = row.variant.removeprefix("inception_v3_").removeprefix("inception_v3") or "299"
        epochs = [point.epoch for point in points]
        curves.plot(epochs, [100 * point.value for point in points], color=colour, label=label)
    bars.set_xticks(range(len(rows)))
    bars.set_xticklabels(
        [
            f"{row.receptive_field} px{' naive' if row.variant.endswith('naive') else ''}\n"
            f"{row.multiply_adds / 1e9:.2f} G"
            for row in rows
        ]
    )
    bars.set_xlabel("input and multiply-adds")
    bars.margins(y=0.12)
    curves.set_xlabel("epoch")
    curves.legend(frameon=False)
    curves.grid(alpha=0.3)
    for panel in (bars, curves):
        panel.set_ylabel("top-1, %")
    save_plot(plot, folder / "receptive_fields.png")


def _for_variant(config: ReceptiveFieldConfig, variant: str, run: Path) -> PretrainConfig:
    model = replace(config.model, variant=variant)
    # Of a comparison that goes on, some are not begun.
    resume = "auto" if config.resume else False
    return as_base(config, PretrainConfig, run=str(run), model=model, resume=resume)


def _standard_error(values: np.ndarray) -> float:
    """Of the mean of `[N]`."""
    return float(values.std() / len(values) ** 0.5)


def _images_per_second(
    models: Mapping[str, InceptionV3], device: torch.device, precision: ResolvedPrecision
) -> dict[str, float]:
    def passes(model: InceptionV3) -> Callable[[], Tensor]:
        batch = torch.zeros(SPEED_BATCH, 3, model.input_size, model.input_size, device=device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        return torch.no_grad()(autocast(device, precision)(lambda: model(batch)))

    calls = {variant: passes(model) for variant, model in models.items()}
    seconds = time_interleaved(calls, SPEED_ROUNDS, device)
    return {variant: SPEED_BATCH / taken for variant, taken in seconds.items()}
