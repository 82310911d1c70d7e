"""Train a backbone on ImageNet-style data.

lowres-rcnn train_backbone --config inception_v3_79 --data.root DIR --run runs/net

lowres-rcnn train_backbone --run runs/net --resume
"""

from pathlib import Path

from backbones.classification.pretraining import PretrainConfig, pretrain_in_processes
from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.training.log_file import print_results
from backbones.training.run_folder import weights_line

USUAL = (
    "data.root run resume epochs batch_size optim.lr model.variant model.width model.weights "
    "device processes"
)


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(PretrainConfig, description=__doc__, usual=USUAL)
    state = pretrain_in_processes(config)
    if not distributed.is_main():
        return
    best, run = state.best_metrics, Path(config.run)
    scores = f"best top-1 {100 * best['top1']:.2f} %, top-5 {100 * best['top5']:.2f} %"
    print_results(run, [scores, weights_line(run / "best.safetensors")])
