"""Plots as PNG files, without a display and without matplotlib's global state."""

from pathlib import Path
from typing import TYPE_CHECKING

from backbones.common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_plot(width: float, height: float) -> "Figure":
    """An empty plot, its sides in inches."""
    # Slow to import, and not needed before the first picture.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plot = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot


def literal(text: str) -> str:
    """A text for a plot that may hold dollars, between which matplotlib would see a formula."""
    return text.replace("$", r"\$")


def save_plot(plot: "Figure", path: Path) -> None:
    """Write a plot atomically as PNG, its panels without the frame's upper and right line."""
    for panel in plot.axes:
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        plot.savefig(file, format="png", dpi=110)
