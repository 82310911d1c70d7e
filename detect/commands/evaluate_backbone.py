"""Score backbones as image classifiers, each alone and together as an ensemble.

lowres-rcnn evaluate_backbone --weights runs/mine/best.safetensors --data.root data/imagenet

Named a run folder, it scores the weights of its newest checkpoint, averaged and raw.

lowres-rcnn evaluate_backbone --weights runs/mine --data.root data/imagenet
"""

from backbones.classification.report import (
    EvaluateBackboneConfig,
    evaluate_backbones,
    format_report,
)
from backbones.common.cli import command
from backbones.common.config import parse_config

USUAL = "weights data.root crops output device"


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(EvaluateBackboneConfig, description=__doc__, usual=USUAL)
    report = evaluate_backbones(config)
    print(f"{format_report(report)}\n\nreport: {report['output']}")
