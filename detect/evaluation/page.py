"""HTML pages that need nothing beside them."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

PICTURE_SIDE = 480
"""Longest side in pixels of a picture on a page."""


def fill_page(template: str, **values: Any) -> str:
    """A template of this folder with values in it."""
    environment = Environment(
        loader=PackageLoader("detect.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(values)


def data_url(picture: Tensor, width: int, height: int) -> str:
    """A picture, `uint8 [3, H, W]`, within so many pixels, as text that an `img` takes."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.thumbnail((width, height))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
