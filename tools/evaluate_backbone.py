"""Score backbones as image classifiers, each alone and together as an ensemble.

python -m tools.evaluate_backbone --weights runs/mine/best.safetensors --data.root data/imagenet \
    --crops 144
python -m tools.evaluate_backbone --weights runs/mine --data.root data/imagenet

The second scores the weights of the run's newest checkpoint, averaged and raw.
"""

from backbones.classification.report import (
    EvaluateBackboneConfig,
    evaluate_backbones,
    format_report,
)
from backbones.common.cli import command
from backbones.common.config import parse_config


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(EvaluateBackboneConfig, description="Score backbones as classifiers.")
    print(format_report(evaluate_backbones(config)))
    print(f"\nreport: {config.output}")


if __name__ == "__main__":
    main()
