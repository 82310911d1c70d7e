"""Accuracy against speed of detectors on a dataset, and what each stage costs.

python -m tools.benchmark_detector --config configs/detector/bccd_speed_accuracy.yaml
"""

from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.benchmarks.speed_accuracy import SpeedAccuracyConfig, measure_speed_accuracy


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(SpeedAccuracyConfig, description="Accuracy against speed of detectors.")
    print(measure_speed_accuracy(config))
    print(f"plots: {config.output}/speed_accuracy.png, {config.output}/cost.png")


if __name__ == "__main__":
    main()
