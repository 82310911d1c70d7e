"""HTML pages that need nothing beside them."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from backbones.common.files import atomic_write

PICTURE_SIDE = 480
"""Longest side in pixels of a picture on a page."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this folder with values and write it as one file."""
    environment = Environment(
        loader=PackageLoader("detect.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(template).render(values)
    with atomic_write(path, "w") as file:
        file.write(page)


def data_url(picture: Tensor, width: int, height: int) -> str:
    """A picture, `uint8 [3, H, W]`, within so many pixels, as text that an `img` takes."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((width, height))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
