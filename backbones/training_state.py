"""How far a training run is."""

from dataclasses import dataclass, field

from backbones.streams import Cursor


@dataclass
class TrainingState:
    """How far a run is; goes into checkpoints."""

    step: int = 0
    """Steps taken, skipped ones included."""
    skipped_steps: int = 0
    """Steps without a finite loss."""
    skipped_in_a_row: int = 0
    """Of those, the last ones."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation with the highest `best_metric`."""
    best_step: int = 0
    """Steps taken at that evaluation."""
    cursors: dict[int, Cursor] = field(default_factory=dict)
    """Places in streamed shards, by slot; complete in checkpoints."""
    sums: dict[str, float] = field(default_factory=dict)
    """Losses added up since the last point of the curves."""
    summed_steps: int = 0
    """Steps in `sums`."""
