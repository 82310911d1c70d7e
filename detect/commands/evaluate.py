"""Score a detector, or any detector's results, and write a report.

lowres-rcnn evaluate --weights runs/mine --data DIR --split test

torchrun --nproc-per-node 2 -m -- detect evaluate --weights runs/mine --output DIR

lowres-rcnn evaluate --results results.json --data DIR --split val2017
"""

from backbones.common import distributed
from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.evaluation.coco import listed
from detect.inference.evaluate import EvaluateConfig, evaluate

USUAL = "weights results data data.format split output device"


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(EvaluateConfig, description=__doc__, usual=USUAL)
    report = evaluate(config)
    if not distributed.is_main():
        return
    scores = listed(report["coco"], ("AP", "AP50", "AP75", "APs", "APm", "APl"))
    print(f"at 100 detections: {scores}" if report["coco"]["crowded"] else scores)
    cost = report["cost"]
    if cost is not None and cost["seconds_per_image"] is not None:
        crops, seconds = cost["crops_per_image"], cost["seconds_per_image"]
        of_crops = "" if crops is None else f"{crops:.1f} crops and "
        print(f"{of_crops}{seconds:.3f} s an image, reading not counted")
    print(f"report: {report['folder']}/report.html")
