"""The inference form of a whole detector."""

from collections.abc import Iterable
from itertools import islice
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from backbones.deploy import deploy
from backbones.device import resolve_precision
from backbones.errors import UserError
from backbones.inception import InceptionV3
from backbones.int8 import quantize, require_quantization
from backbones.layers import copy_layers
from detect.detector import Detector, Image
from detect.proposals import LearnedProposer
from detect.proposals.deployed import deploy_proposer

DetectorPrecision = Literal["auto", "fp32", "bf16", "int8"]

CALIBRATION_IMAGES, CROPS_PER_IMAGE = 32, 16
"""What sets the ranges of 8-bit maps: hundreds of crops, in seconds."""


def deploy_detector(
    detector: Detector,
    precision: DetectorPrecision = "auto",
    calibration_images: Iterable[Image] = (),
) -> Detector:
    """A detector for use only that finds the same in less time; `detector` stays as it is.

    Args:
        detector: what `load_detector` gives.
        precision: of both networks. `auto` is `bf16` where the device computes in it, `fp32`
            elsewhere. `int8` quantises the crop network (see `backbones.int8`; on the CPU), the
            proposer is then as with `auto`.
        calibration_images: for `int8` alone, images like those it will see; the first 32 are taken.

    Raises:
        UserError: `int8` off the CPU, without a proposer, without images, or with nothing proposed
            in them.
        MissingPackageError: `int8` without its packages.
    """
    if precision not in get_args(DetectorPrecision):
        raise ValueError(f"precision must be auto, fp32, bf16 or int8, got {precision!r}")
    of_network: Literal["auto", "fp32", "bf16"] = "auto" if precision == "int8" else precision
    trained = detector.model
    model = copy_layers(trained)
    if isinstance(trained.proposer, LearnedProposer):
        model.proposer = deploy_proposer(trained.proposer, of_network)
    if precision == "int8":
        if detector.device.type != "cpu":
            raise UserError(f"int8 is for the CPU, not {detector.device}: take device cpu")
        if trained.proposer is None:
            raise UserError("int8 needs a detector with a proposer of its own to set its ranges by")
        require_quantization()
    resolved = precision if precision == "int8" else resolve_precision(precision, detector.device)
    metadata = {**detector.metadata, "precision": resolved}
    deployed = Detector(model, detector.class_names, detector.category_ids, metadata)
    if precision == "int8":
        quantized = quantize(trained.backbone, _crops(deployed, calibration_images))
        model.backbone = cast(InceptionV3, quantized)  # it takes its place
    else:
        model.backbone = cast(InceptionV3, deploy(trained.backbone, of_network))
    return deployed


@torch.inference_mode()
def _crops(detector: Detector, images: Iterable[Image]) -> list[Tensor]:
    """Crops of some images, a batch for each: from the best proposals to the worst."""
    batches = []
    for image in islice(images, CALIBRATION_IMAGES):
        pixels = detector.as_tensor(image)
        boxes = detector.propose([pixels])[0].boxes
        if len(boxes):
            chosen = torch.linspace(0, len(boxes) - 1, min(len(boxes), CROPS_PER_IMAGE)).long()
            batches.append(detector.model.crop([pixels], [boxes[chosen]]))
    if not batches:
        raise UserError(
            "int8 needs images to set its ranges by: pass calibration_images, in which something "
            "is proposed"
        )
    return batches
