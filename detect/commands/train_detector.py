"""Train a detector and score it.

lowres-rcnn train_detector --config small --data DIR --run runs/mine

lowres-rcnn train_detector --config bccd_79 --epochs 20

lowres-rcnn train_detector --run runs/mine --resume
"""

from pathlib import Path

from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.training.log_file import print_results
from backbones.training.run_folder import weights_line
from detect.config import DetectorConfig
from detect.evaluation.coco import listed
from detect.training.train import train_in_processes

USUAL = (
    "data data.format data.train data.val data.test run resume epochs batch_size "
    "optim.lr augment.flip model.weights model.learned.scale model.rcnn.crop_size device "
    "processes"
)


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(DetectorConfig, description=__doc__, usual=USUAL)
    outcome = train_in_processes(config)
    if not distributed.is_main():
        return
    lines = []
    for split in ("val", "test"):
        scores = outcome[split]
        if scores is not None:
            names = [
                name
                for name, value in scores.items()
                if isinstance(value, float) or (value is None and name.startswith("A"))
            ]
            lines.append(f"{split}: {listed(scores, names)}")
    lines += [weights_line(outcome["weights"]), f"curves:  {config.run}/curves.png"]
    print_results(Path(config.run), lines)
