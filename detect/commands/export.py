"""Write a trained network for use without this package: a backbone, or a whole detector.

lowres-rcnn export --weights runs/mine --output detector.onnx
"""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from backbones import load_backbone
from backbones.common.cli import command
from backbones.common.config import flatten, parse_config
from backbones.common.errors import UserError
from backbones.common.files import make_folder
from backbones.common.regular_files import read_file
from backbones.deployment.onnx import export_backbone
from backbones.networks.hub import SCHEME
from backbones.networks.weights import find_weights, load_metadata
from detect.checkpoint import load_detector
from detect.deployment.detector import CALIBRATION_IMAGES
from detect.deployment.export import export_detector
from detect.media.sources import find_inputs, spread_images


@dataclass(frozen=True)
class ExportConfig:
    """What to export where."""

    weights: str
    """Checkpoint (.safetensors) that train_backbone or train_detector wrote, or its run folder."""
    output: str | None = None
    """File to write: .onnx, or of a detector .xml for OpenVINO; null writes beside the weights,
    with the suffix .onnx. An earlier export there is replaced, any other file is not."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of a detector with other values than in training, as for infer, which the file
    keeps: `--model.rcnn.score_thresh 0.3`."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Numbers that the networks of a detector compute in; `bf16` and `int8` for .xml alone."""
    calibration: list[str] = field(default_factory=list)
    """Images, or folders of them, that set the ranges of `int8`."""

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix not in (".onnx", ".xml"):
            raise UserError(f"output must end in .onnx or .xml, got {self.output}")
        if self.output is None and self.weights.startswith(SCHEME):
            raise UserError(f"output: name a file for what is made of {self.weights}")
        if bool(self.calibration) != (self.precision == "int8"):
            raise UserError("precision int8 and calibration belong together: name both")


logger = logging.getLogger(__name__)


def check_replaceable(output: Path) -> None:
    """Raise `UserError` where something is at a path, or where the weights of an `.xml` go, that is
    no earlier export."""
    files = (output, output.with_suffix(".bin")) if output.suffix == ".xml" else (output,)
    there = [path for path in files if os.path.lexists(path)]
    content = b""
    with suppress(OSError):
        content = read_file(output)
    # Both in the metadata of all that is written here.
    if there and not (b"package_version" in content and b"variant" in content):
        raise UserError(
            f"{there[0]}: is there already, and export did not write it: delete it, or name "
            "another output"
        )


USUAL = "weights output precision calibration"


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(ExportConfig, description=__doc__, usual=USUAL)
    weights = find_weights(config.weights)
    output = weights.with_suffix(".onnx") if config.output is None else Path(config.output)
    metadata = load_metadata(weights)
    make_folder(output.parent)
    check_replaceable(output)
    if metadata.get("kind") == "detector":
        detector = load_detector(weights, "cpu", config.model)
        images = find_inputs(config.calibration) if config.calibration else None
        examples = () if images is None else spread_images(images, CALIBRATION_IMAGES)
        difference = export_detector(output, detector, config.precision, examples)
        if config.model:
            logger.warning(
                "%s: has other settings than the detector was trained and scored with: %s; measure "
                "it by evaluate --weights",
                *(output, ", ".join(flatten(config.model))),
            )
        print(f"{output}: scores in fp32 differ from PyTorch's by at most {difference:.1e}")
        return
    if output.suffix != ".onnx" or config.model or config.precision != "fp32":
        raise UserError(
            "a backbone is written as .onnx in fp32: remove output .xml, model and precision"
        )
    difference = export_backbone(output, load_backbone(weights), metadata.get("class_names"))
    print(f"{output}: ONNX Runtime's outputs differ by at most {difference:.1e}")
