"""What tests wrote with `torch.save`."""

from pathlib import Path
from typing import Any

import torch


def load_saved(path: Path) -> Any:
    """The content; by its name alone newer versions of torch would take a file for safetensors."""
    with path.open("rb") as file:
        return torch.load(file)
