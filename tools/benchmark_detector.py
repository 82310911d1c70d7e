"""Accuracy against speed of detectors on a dataset, and what each stage costs.

python -m tools.benchmark_detector --config configs/detector/bccd_speed_accuracy.yaml
"""

from backbones.common.cli import run_tool
from backbones.common.config import parse_config
from detect.benchmarks.speed_accuracy import SpeedAccuracyConfig, measure_speed_accuracy


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


def _main() -> None:
    config = parse_config(SpeedAccuracyConfig, description="Accuracy against speed of detectors.")
    print(measure_speed_accuracy(config))
    print(f"plots: {config.output}/speed_accuracy.png, {config.output}/cost.png")


if __name__ == "__main__":
    main()
