"""Compare crop networks, low-resolution and not, inside a detector on the same proposals.

python -m tools.compare_crops --config configs/detector/bccd_comparison.yaml
"""

from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.benchmarks.crop_networks import ComparisonConfig, compare_crops, comparison_table


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(
        ComparisonConfig, description="Train detectors that differ in their crop network alone."
    )
    print(comparison_table(compare_crops(config)))
    print(f"plot: {config.run}/comparison.png")


if __name__ == "__main__":
    main()
