"""Train a detector and score it."""

from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.config import DetectorConfig
from detect.evaluation.coco import listed
from detect.training.train import train_in_processes


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(DetectorConfig, description="Train an R-CNN detector.")
    outcome = train_in_processes(config)
    if not distributed.is_main():
        return
    for split in ("val", "test"):
        scores = outcome[split]
        if scores is not None:
            names = [
                name
                for name, value in scores.items()
                if isinstance(value, float) or (value is None and name.startswith("A"))
            ]
            print(f"{split}: {listed(scores, names)}")
    print(f"weights: {outcome['weights']}")
    print(f"curves:  {config.run}/curves.png")
