"""Accuracy against speed of detectors on a dataset, and what each stage costs.

python -m tools.benchmark_detector --config configs/detector/bccd_front.yaml
"""

from backbones.common.cli import run_tool
from backbones.common.config import parse_config
from detect.benchmarks.speed_accuracy import FrontConfig, measure_front


def main() -> None:
    """Run from the command line."""
    run_tool(_main)


def _main() -> None:
    config = parse_config(FrontConfig, description="Accuracy against speed of detectors.")
    print(measure_front(config))
    print(f"plots: {config.output}/front.png, {config.output}/cost.png")


if __name__ == "__main__":
    main()
