"""Train networks of equal compute and different receptive fields, and compare them.

python -m tools.compare_receptive_fields --config configs/backbone/receptive_fields.yaml
"""

from pathlib import Path

from backbones.benchmarks.receptive_fields import (
    ReceptiveFieldConfig,
    compare_receptive_fields,
    format_table,
)
from backbones.common.cli import command
from backbones.common.config import parse_config


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(
        ReceptiveFieldConfig,
        description="The paper's Table 2 on your data: equal compute, different receptive fields.",
    )
    print(format_table(compare_receptive_fields(config)))
    print(f"plot: {Path(config.run) / 'receptive_fields.png'}")


if __name__ == "__main__":
    main()
