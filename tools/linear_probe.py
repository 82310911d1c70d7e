"""Compare how much of weights for 299 pixels a network for 79 keeps, by how it starts from them.

python -m tools.linear_probe --root data/imagenet --weights torchvision:IMAGENET1K_V1
"""

from backbones.benchmarks.linear_probe import ProbeConfig, format_probe, probe_starts
from backbones.common.cli import command
from backbones.common.config import parse_config


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(
        ProbeConfig,
        description="A linear classifier on the features of networks that are left as they start.",
    )
    print(format_probe(probe_starts(config)))


if __name__ == "__main__":
    main()
