"""Train a backbone on ImageNet-style data."""

from pathlib import Path

from backbones.classification.pretraining import PretrainConfig, pretrain_in_processes
from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(PretrainConfig, description="Train a backbone as an image classifier.")
    state = pretrain_in_processes(config)
    if not distributed.is_main():
        return
    best = state.best_metrics
    print(f"best top-1 {100 * best['top1']:.2f} %, top-5 {100 * best['top5']:.2f} %")
    print(f"weights: {Path(config.run) / 'best.safetensors'}")
