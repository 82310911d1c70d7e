"""The inference form of a whole detector."""

from collections.abc import Iterable
from itertools import islice
from os import PathLike
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from backbones.common.device import resolve_precision
from backbones.common.errors import UserError
from backbones.deployment.openvino import convert, quantize, require_quantization
from backbones.deployment.pytorch import DeployPrecision, deploy
from backbones.deployment.surgery import copy_layers
from backbones.networks.inception import InceptionV3
from detect.deployment.exported import ExportedModel
from detect.deployment.proposer import deploy_proposer
from detect.detector import Detector
from detect.media.given import Folder, Image, check_several, image_files, is_folder
from detect.proposals import LearnedProposer

DetectorPrecision = Literal["auto", "fp32", "bf16", "int8"]
Engine = Literal["auto", "torch", "openvino"]

CALIBRATION_IMAGES, CROPS_PER_IMAGE = 32, 16
"""What sets the ranges of 8-bit maps: hundreds of crops, in seconds."""


def check_detector(detector: object) -> None:
    """Raise `UserError` unless it is a detector."""
    if not isinstance(detector, Detector):
        got = repr(detector) if isinstance(detector, str | PathLike) else type(detector).__name__
        raise UserError(f"expected a detector, which load_detector(FILE) gives, got {got}")


def deploy_detector(
    detector: Detector,
    precision: DetectorPrecision = "auto",
    calibration_images: Iterable[Image] | Folder = (),
    engine: Engine = "auto",
) -> Detector:
    """A detector for use only that finds the same in less time; `detector` stays as it is.

    Args:
        detector: what `load_detector` gives.
        precision: of both networks. `auto` is `bf16` where the device computes in it, `fp32`
            elsewhere. `int8` quantises the crop network, the proposer is then as with `auto`.
        calibration_images: for `int8` alone, images like those it will see, or a folder of them;
            the first 32 are taken.
        engine: what runs the crop network. `openvino` is for the CPU and needs an extra package; it
            is the faster one in `bf16` and the only one in `int8`. `auto` is `openvino` for `int8`,
            else `torch`.

    Raises:
        UserError: no detector, OpenVINO off the CPU, `int8` in PyTorch, without a proposer, without
            images, or with nothing proposed in them.
        MissingPackageError: OpenVINO without its packages.
        ValueError: the detector is deployed already.
    """
    check_detector(detector)
    if precision not in get_args(DetectorPrecision):
        raise ValueError(f"precision must be auto, fp32, bf16 or int8, got {precision!r}")
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be auto, torch or openvino, got {engine!r}")
    trained, device = detector.model, detector.device
    if isinstance(cast(object, trained), ExportedModel):
        if (precision, engine) != ("auto", "auto"):
            raise UserError(
                "an exported detector has its precision and engine: remove precision and engine"
            )
        return detector
    if engine == "auto":
        engine = "openvino" if precision == "int8" else "torch"
    if not isinstance(trained.backbone, InceptionV3):
        raise ValueError("this detector is deployed already: deploy the one it was made from")
    if engine == "openvino" and device.type != "cpu":
        raise UserError(f"engine openvino is for the CPU, not {device}: take device cpu")
    if precision == "int8":
        if engine == "torch":
            raise UserError("precision int8 runs in OpenVINO alone: take engine openvino or auto")
        if trained.proposer is None:
            raise UserError("int8 needs a detector with a proposer of its own to set its ranges by")
        require_quantization()
    of_proposer: DeployPrecision = "auto" if precision == "int8" else precision
    model = copy_layers(trained)
    if isinstance(trained.proposer, LearnedProposer):
        model.proposer = deploy_proposer(trained.proposer, of_proposer)
    resolved = precision if precision == "int8" else resolve_precision(precision, device)
    metadata = {**detector.metadata, "precision": resolved, "engine": engine}
    deployed = Detector(model, detector.class_names, detector.category_ids, metadata)

    network: nn.Module
    if precision == "int8":
        network = quantize(trained.backbone, calibration_crops(deployed, calibration_images))
    elif engine == "openvino":
        network = convert(trained.backbone, precision, trained.crop_size)
    else:
        network = deploy(trained.backbone, precision)
    model.backbone = cast(InceptionV3, network)
    return deployed


@torch.inference_mode()
def calibration_crops(detector: Detector, images: Iterable[Image] | Folder) -> list[Tensor]:
    """A detector's crops of the first 32 images, a batch for each: from the best proposals to the
    worst."""
    batches = []
    if is_folder(images):
        images = image_files(images)
    several = check_several(images, "calibration_images: expected a list of images or a folder")
    for image in islice(several, CALIBRATION_IMAGES):
        pixels = detector.as_tensor(image)
        boxes = detector.propose([pixels])[0].boxes
        if len(boxes):
            chosen = torch.linspace(0, len(boxes) - 1, min(len(boxes), CROPS_PER_IMAGE)).long()
            batches.append(detector.model.crop([pixels], [boxes[chosen]]))
    if not batches:
        raise UserError(
            "int8 needs images to set its ranges by, in which something is proposed: pass "
            "calibration_images (of the tools: calibration, calibration_split, or inputs that can "
            "be read)"
        )
    return batches
