"""Write a trained network as ONNX: a backbone, or the crop network of a detector."""

from dataclasses import dataclass
from pathlib import Path

from backbones import load_backbone
from backbones.common.cli import command
from backbones.common.config import parse_config
from backbones.common.errors import UserError
from backbones.common.files import make_folder
from backbones.deployment.onnx import export_backbone
from backbones.networks.weights import find_weights, load_metadata
from detect.checkpoint import load_detector
from detect.deployment.onnx import export_crop_network


@dataclass(frozen=True)
class ExportConfig:
    """What to export where."""

    weights: str
    """Checkpoint (.safetensors) that train_backbone or train_detector wrote, or its run folder."""
    output: str | None = None
    """ONNX file to write; null writes beside the weights, with the suffix .onnx."""

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix != ".onnx":
            raise UserError(f"output must end in .onnx, got {self.output}")


@command
def main() -> None:
    """Run from the command line."""
    config = parse_config(ExportConfig, description="Write a trained network as ONNX.")
    weights = find_weights(config.weights)
    output = weights.with_suffix(".onnx") if config.output is None else Path(config.output)
    make_folder(output.parent)
    metadata = load_metadata(weights)
    if metadata.get("kind") == "detector":
        difference = export_crop_network(output, load_detector(weights, device="cpu"))
    else:
        names = metadata.get("class_names")
        difference = export_backbone(output, load_backbone(weights), names)
    print(f"{output}: ONNX Runtime's outputs differ by at most {difference:.1e}")
