"""What came of looking at many inputs, to be said at the end."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass
class InferenceReport:
    """What `infer` did.

    Attributes:
        output: folder that was written to.
        images: number of pictures and video frames with detections made.
        objects: number of objects found, by class.
        errors: one line for each input that could not be read (to its end).
        unwritten: one line for each picture or video whose format cannot hold it.
    """

    output: Path
    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)

    def count(self, found: dict[str, Tensor], class_names: Sequence[str]) -> None:
        """Count an image and what was found in it."""
        self.images += 1
        self.objects.update(class_names[label - 1] for label in found["labels"].tolist())

    def faults(self) -> str:
        """How many of both there are, in words; nothing where there are none."""
        both = {"inputs that could not be read": self.errors}
        both["results that could not be written"] = self.unwritten
        return ", ".join(f"{what}: {len(lines)}" for what, lines in both.items() if lines)

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count}" for name, count in self.objects.items() if count)
        return (
            f"images and frames: {self.images}, objects: {self.objects.total()}"
            f"{f' ({classes})' if classes else ''}, written to {self.output}"
        )
