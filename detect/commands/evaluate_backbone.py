"""Score backbones as image classifiers, each alone and together as an ensemble."""

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
