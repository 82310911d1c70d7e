"""The crop network of a detector as an ONNX file."""

from pathlib import Path

from torch import Tensor, nn

from backbones.deployment.folding import fold_batch_norm
from backbones.deployment.onnx import export_onnx
from backbones.networks.metadata import describe
from detect.detector import Detector
from detect.rcnn.model import RCNN


class CropNetwork(nn.Module):
    """What a detector does with a crop: one network from pixels to classes and boxes.

    Args:
        model: the detector, in evaluation mode; it stays as it is.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.backbone = fold_batch_norm(model.backbone)
        self.cls_score, self.bbox_pred = model.cls_score, model.bbox_pred
        self.eval()

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised crops `[N, 3, S, S]` to logits `[N, K + 1]` and deltas `[N, K or 1, 4]`."""
        features = self.backbone(crops)
        deltas = self.bbox_pred(features)
        return self.cls_score(features), deltas.unflatten(1, (-1, 4))


def export_crop_network(path: str | Path, detector: Detector) -> float:
    """Write the crop network as ONNX: `images` in, `logits` and `deltas` out, see `CropNetwork`.

    The metadata hold what a user needs to cut crops and to read the outputs: `crop_mode` and
    `context` of `detect.rcnn.crops`, `delta_std` of `detect.boxes.decode_boxes`, the class names of
    labels 1..K (logit 0 is the background).

    Returns and raises: as `backbones.deployment.onnx.export_onnx`.
    """
    model = detector.model
    metadata = describe(model.backbone) | {
        "input_size": model.crop_size,
        "class_names": detector.class_names,
        "crop_mode": model.config.crop_mode,
        "context": model.config.context,
        "delta_std": model.config.delta_std,
    }
    return export_onnx(path, CropNetwork(model), model.crop_size, ("logits", "deltas"), metadata)
