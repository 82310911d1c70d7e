"""Figures as PNG files, without a display and without matplotlib's global state."""

from pathlib import Path
from typing import TYPE_CHECKING

from backbones.common.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, its sides in inches."""
    # Slow to import, and not needed before the first picture.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure atomically as PNG, its panels without the frame's upper and right line."""
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
