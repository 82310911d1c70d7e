"""Seconds and memory of inference against the area of an image.

python -m tools.benchmark_large --weights runs/aerial --image photo.jpg
"""

from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.benchmarks.area import AreaConfig, measure_area


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(AreaConfig, description="Seconds and memory against an image's area.")
    print(measure_area(config))
    print(f"plot: {config.output}/area.png")


if __name__ == "__main__":
    main()
