"""Tables of what networks and input pipelines cost, ours beside the peers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from backbones.benchmarks.input_pipelines import input_rates, make_jpegs
from backbones.benchmarks.peak_memory import peak_memory
from backbones.benchmarks.peers import NetworkForm, inference_forms, training_forms
from backbones.benchmarks.timing import matrix_peak, time_interleaved
from backbones.networks.cost import count_multiply_adds
from backbones.networks.inception import create_backbone

PEAK_SIZES = (512, 1024, 2048)
LARGER_SIZES = (4096, 8192)
"""Of the products that a GPU needs to show what it can do."""
INPUT_IMAGES = 100

Part = Literal["inference", "training", "memory", "input"]


@dataclass(frozen=True)
class Row:
    """One measurement."""

    part: Part
    network: str
    """The variant, or the side of the crops in pixels."""
    name: str
    """Of what was measured, ours or a peer's."""
    precision: str
    batch_size: int
    value: float
    """Images a second, or for `memory` megabytes."""
    ratio: float
    """To the first row of its table; more is better, but for `memory`."""
    peak_share: float | None = None
    """Of the machine's measured bf16 matrix product, for bf16 forward passes."""


def measure_inference(
    variant: str,
    width: float,
    batch_size: int,
    device: torch.device,
    repeats: int,
    *,
    compiled: bool,
) -> list[Row]:
    """Images a second of forward passes, and the share of the matrix peak that bf16 reaches."""
    forms = inference_forms(variant, width, batch_size, device, compiled=compiled)
    rates = _rates(forms, batch_size, repeats, device)
    sizes = PEAK_SIZES + (LARGER_SIZES if device.type == "cuda" else ())
    peak = matrix_peak(torch.bfloat16, device, sizes)
    network = create_backbone(variant, num_classes=0, width=width).eval()
    cost = count_multiply_adds(network, network.input_size)
    return [
        replace(row, peak_share=row.value * cost / peak) if row.precision == "bf16" else row
        for row in _rows("inference", variant, forms, batch_size, rates)
    ]


def measure_training(
    variant: str, width: float, batch_size: int, device: torch.device, repeats: int
) -> list[Row]:
    """Images a second of training steps."""
    forms = training_forms(variant, width, batch_size, device)
    rates = _rates(forms, batch_size, repeats, device)
    return _rows("training", variant, forms, batch_size, rates)


def measure_memory(variant: str, width: float, batch_size: int, device: torch.device) -> list[Row]:
    """Peak memory of forward passes, each in a process of its own."""
    forms = inference_forms(variant, width, batch_size, device, compiled=False)
    peaks = [
        peak_memory(variant, width, batch_size, device, index) / 1e6 for index in range(len(forms))
    ]
    return _rows("memory", variant, forms, batch_size, peaks)


def measure_input(size: int, images: Path | None, made: Path, repeats: int) -> list[Row]:
    """Images a second and core that are read and augmented to crops of `size` pixels.

    They are those of the folder `images`, CLASS/*, or without one are made in `made`.
    """
    if images is None:
        make_jpegs(made / "made", INPUT_IMAGES)
    rates = input_rates(images or made, size, INPUT_IMAGES, repeats)
    first = next(iter(rates.values()))
    return [
        Row("input", f"{size} px", name, "uint8", 1, rate, rate / first)
        for name, rate in rates.items()
    ]


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table of measurements of one part and network."""
    part, network = rows[0].part, rows[0].network
    unit = "MB" if part == "memory" else "images/s"
    shares = any(row.peak_share is not None for row in rows)
    lines = [
        f"| {part}, {network}, batch {rows[0].batch_size} | | {unit} | ratio |"
        + (" of the matrix peak |" if shares else ""),
        "| --- | --- | ---: | ---: |" + (" ---: |" if shares else ""),
    ]
    for row in rows:
        share = "" if row.peak_share is None else f"{row.peak_share:.2f}"
        lines.append(
            f"| {row.name} | {row.precision} | {row.value:.4g} | {row.ratio:.2f} |"
            + (f" {share} |" if shares else "")
        )
    return "\n".join(lines)


def _rows(
    part: Part, variant: str, forms: Sequence[NetworkForm], size: int, values: Sequence[float]
) -> list[Row]:
    return [
        Row(part, variant, one.name, one.precision, size, value, value / values[0])
        for one, value in zip(forms, values, strict=True)
    ]


def _rates(
    forms: Sequence[NetworkForm], batch_size: int, repeats: int, device: torch.device
) -> list[float]:
    calls = {str(index): one.make() for index, one in enumerate(forms)}
    seconds = time_interleaved(calls, repeats, device)
    return [batch_size / taken for taken in seconds.values()]
