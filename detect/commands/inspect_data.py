"""Say what a dataset holds and what may be wrong with it, with pictures of its boxes.

python -m tools.inspect_data --data PATH
"""

from backbones.common.cli import command
from backbones.common.config import parse_config
from detect.evaluation.data_page import InspectConfig, inspect_data


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(InspectConfig, description="Say what a dataset holds, with pictures.")
    inspect_data(config)
    print(f"page: {config.output}/data.html, pictures: {config.output}/sheet.png")
