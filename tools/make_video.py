"""Make a video of the pictures in a folder, to try video inference on.

python -m tools.make_video --inputs FOLDER --output pictures.mp4
"""

import os
from dataclasses import dataclass
from pathlib import Path

from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.files import make_folder
from backbones.common.progress import track
from backbones.common.ranges import check_ranges
from detect.media.sources import find_inputs, read_input
from detect.media.video import slideshow


@dataclass(frozen=True)
class MakeVideoConfig:
    """Which pictures, how fast."""

    inputs: list[str]
    """Pictures of the video: image files, folders of them, or glob patterns."""
    output: str = "pictures.mp4"
    """Video to write (H.264), an .mp4."""
    fps: float = 2.0
    """Pictures that the video shows a second."""
    most: int = 1000
    """Most pictures that the video shows, the first ones."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"(0, inf)": "fps", "[1, inf)": "most"})


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(MakeVideoConfig, description="Make a video of pictures.")
    paths = find_inputs(config.inputs).images[: config.most]
    if not paths:
        raise UserError(f"{' '.join(config.inputs)}: no pictures there, only videos")
    _, height, width = read_input(paths[0]).shape
    images = (read_input(path) for path in track(paths, len(paths), "video"))
    target = Path(config.output)
    if os.path.isdir(target):
        raise UserError(f"{target}: expected the name of a video, this is a folder")
    if target.suffix.lower() != ".mp4":
        raise UserError(f"{target}: expected the name of a video, which ends in .mp4")
    make_folder(target.parent)
    count = slideshow(target, images, config.fps, (height, width))
    print(f"{count} pictures: {target}")


if __name__ == "__main__":
    main()
