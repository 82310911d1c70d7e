"""Say what a dataset holds and what may be wrong with it, with pictures of its boxes.

lowres-rcnn inspect_data --data PATH
"""

import os

from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from detect.evaluation.data_page import InspectConfig, inspect_data

USUAL = "data output"


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(InspectConfig, description=__doc__, usual=USUAL)
    account = inspect_data(config)
    sheet = f"{config.output}/sheet.jpg"
    pictures = f", pictures: {sheet}" if os.path.exists(sheet) else ""
    print(f"page: {config.output}/data.html{pictures}")
    if account.unreadable:
        raise UserError(f"pictures that could not be read: {account.unreadable}, see above")
