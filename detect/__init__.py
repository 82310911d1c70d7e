"""Detection of small objects: R-CNN with a low-resolution Inception network on its crops.

Conventions, everywhere in this package: images are `uint8` RGB tensors `[3, H, W]`; boxes are
`float32` xyxy in absolute pixels, half-open (`x2 - x1` is the width, never plus one); sizes are
(height, width), but in datasets (width, height), as in their files; labels are `int64`, 0 is
background and 1..K are the classes. Other formats are converted when annotations are read and
results are written, nowhere else.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbones import __version__ as __version__
    from detect.build import build_detector
    from detect.checkpoint import load_detector, save_detector
    from detect.config import ModelConfig
    from detect.deployment.detector import deploy_detector
    from detect.detector import Detector
    from detect.rcnn.config import RCNNConfig
    from detect.rcnn.model import RCNN
    from detect.result import Result

__all__ = [
    "RCNN",
    "Detector",
    "ModelConfig",
    "RCNNConfig",
    "Result",
    "build_detector",
    "deploy_detector",
    "load_detector",
    "save_detector",
]

_HOMES = {
    "RCNN": "detect.rcnn.model",
    "Detector": "detect.detector",
    "ModelConfig": "detect.config",
    "RCNNConfig": "detect.rcnn.config",
    "Result": "detect.result",
    "__version__": "backbones",
    "build_detector": "detect.build",
    "deploy_detector": "detect.deployment.detector",
    "load_detector": "detect.checkpoint",
    "save_detector": "detect.checkpoint",
}


if not TYPE_CHECKING:  # for which every name would be there

    def __getattr__(name: str) -> Any:
        """What the package exports and its modules, imported when asked for: the command starts
        before PyTorch is there, which takes seconds, and so ends at once upon Ctrl-C."""
        if name in _HOMES:
            value = globals()[name] = getattr(import_module(_HOMES[name]), name)
            return value
        if (
            name.isidentifier()
            and not name.startswith("_")
            and find_spec(f"{__name__}.{name}") is not None
        ):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
