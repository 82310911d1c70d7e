"""A whole detector as one file of ONNX or OpenVINO, which runs without this package."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from backbones.common.errors import DiskError, UserError
from backbones.common.files import atomic_write, write_errors
from backbones.common.packages import require
from backbones.deployment.onnx import to_onnx
from backbones.deployment.openvino import core, quantize, require_quantization
from backbones.networks.metadata import describe
from detect.deployment.detector import calibration_crops, check_detector
from detect.deployment.exported import OUTPUTS, RT_INFO
from detect.deployment.seal import seal_onnx, seal_openvino
from detect.deployment.whole import WholeDetector
from detect.detector import Detector
from detect.media.given import Image

LARGEST_DIFFERENCE = 1e-2
"""Of a score, between PyTorch and what a file gives; a resized pixel may differ by rounding."""

logger = logging.getLogger(__name__)


def export_detector(
    path: str | Path,
    detector: Detector,
    precision: str = "fp32",
    calibration_images: Iterable[Image] = (),
) -> float:
    """Write a detector as one graph: `image` in, `boxes`, `labels` and `scores` out.

    It takes `uint8` RGB `[H, W, 3]` of any size, and gives what the detector does: boxes
    `float32 [N, 4]` xyxy in pixels, labels `int64 [N]` in 1..K, and scores `float32 [N]`, best
    first. The metadata has what else is to know: class names of the labels 1..K, their category
    ids, the configuration with its thresholds, normalisation, precision.

    Args:
        path: a `.onnx` file, or `.xml` for OpenVINO, which has its weights in a `.bin` beside it.
        detector: what `load_detector` gives, on the CPU.
        precision: `fp32`; OpenVINO's file also `bf16`, or `int8`, which quantises the crop network.
        calibration_images: for `int8` alone, see `deploy_detector`.

    Returns:
        The largest difference of a score between the file, in fp32, and PyTorch.

    Raises:
        MissingPackageError: an extra is not installed.
        UserError: no detector, or one that cannot be exported, or not in this precision.
        RuntimeError: ONNX Runtime computes something else.
    """
    check_detector(detector)
    path = Path(path)
    if path.suffix == ".onnx" and precision != "fp32":
        raise UserError(f"an ONNX file is in fp32, not {precision}: write OpenVINO's, .xml")
    require("export", "onnx", "onnxscript", "onnxruntime")
    if path.suffix == ".xml":
        require("openvino", "openvino")
    whole = WholeDetector(detector.model)
    # Looks at nothing else than is exported, and takes other crops.
    metadata = {
        "kind": "detector",
        **describe(detector.model.backbone),
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "score_thresh": detector.model.config.score_thresh,
        "precision": precision,
        "config": detector.metadata.get("config"),
        "metrics": detector.metadata.get("metrics"),
    }
    logger.info("%s: torch follows the network, which takes a minute of a core", path)
    image = _example(whole)
    # First of all, so that no cached tensor is one of those that torch traces with.
    with torch.inference_mode(False), torch.no_grad():
        expected = whole(image)[2]
    data = _onnx_of(whole, metadata)
    difference = _check(data, image, expected)
    if path.suffix == ".onnx":
        with atomic_write(path) as file:
            file.write(seal_onnx(data))
        return difference
    if precision == "int8":
        import openvino

        require_quantization()
        quantized = quantize(
            detector.model.backbone, calibration_crops(detector, calibration_images)
        )
        data = _onnx_of(_with_placeholder(whole), metadata)
        model = core().read_model(data)
        _graft(model, core().read_model(quantized.graph, openvino.Tensor(quantized.weights)))
    else:
        model = core().read_model(data)
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [RT_INFO, key])
    save_openvino(path, model)
    return difference


def save_openvino(path: Path, model: Any) -> None:
    """Write an `.xml` and the `.bin` beside it, which replace earlier ones when both are whole.

    Raises:
        DiskError: the disk refuses them.
    """
    import openvino

    with write_errors(path), TemporaryDirectory(dir=path.parent, prefix=".export.") as folder:
        new = Path(folder, path.name)
        try:
            openvino.save_model(model, new, compress_to_fp16=False)
        except RuntimeError as error:  # its streams give no reason
            raise DiskError(f"{path}: cannot be written: is there room on the disk?") from error
        seal_openvino(new)
        for suffix in (".bin", ".xml"):
            os.replace(new.with_suffix(suffix), path.with_suffix(suffix))


def _onnx_of(whole: WholeDetector, metadata: Mapping[str, Any]) -> bytes:
    from detect.deployment.suppression import TRANSLATIONS

    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            whole, (_example(whole),), dynamic_shapes=({0: dynamic, 1: dynamic},)
        )
    return to_onnx(program, ["image"], OUTPUTS, metadata, TRANSLATIONS)


def _example(whole: WholeDetector) -> Tensor:
    """Noise in squares, of a size that the proposer sees as it is."""
    random = torch.Generator().manual_seed(0)
    squares = torch.randint(0, 256, (5, 7, 3), generator=random, dtype=torch.uint8)
    side = -(-whole.tile_size // 7)
    image = squares.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return image[: whole.tile_size - 20, : whole.tile_size].contiguous()


def _check(data: bytes, image: Tensor, expected: Tensor) -> float:
    """The largest difference of a score between ONNX Runtime and PyTorch, which expects these."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["scores"], {"image": image.numpy()})[0])
    count = min(len(expected), len(found))
    difference = float((expected[:count] - found[:count]).abs().max()) if count else 0.0
    if not difference <= LARGEST_DIFFERENCE or abs(len(expected) - len(found)) > 1:
        raise RuntimeError(
            f"ONNX Runtime finds something else: {len(found)} boxes of {len(expected)}, scores off "
            f"by {difference:.2g}; nothing was written"
        )
    return difference


def _with_placeholder(whole: WholeDetector) -> WholeDetector:
    """With a layer in the place of the crop network, which `_graft` finds by its shape."""
    features = whole.cls_score.in_features
    whole.backbone = nn.Sequential(nn.Conv2d(3, features, whole.crop_size), nn.Flatten())
    return whole.eval()


def _graft(model: Any, network: Any) -> None:
    """Put a network, of one input and one output, in the place of `_with_placeholder`'s layer."""
    import openvino.opset13 as ops

    (wanted,) = (
        layer
        for layer in model.get_ops()
        if layer.get_type_name() == "Convolution"
        and list(layer.input(1).get_shape())[2:]
        == list(network.inputs[0].partial_shape.get_max_shape())[2:]
    )
    for target in network.inputs[0].get_target_inputs():
        target.replace_source_output(wanted.input_value(0))
    features = network.outputs[0].get_node().input_value(0)
    for target in wanted.output(0).get_target_inputs():
        target.replace_source_output(ops.unsqueeze(features, [2, 3]).output(0))
    model.validate_nodes_and_infer_types()
