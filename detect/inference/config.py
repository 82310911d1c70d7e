"""What there is to choose about a trained detector in use."""

from dataclasses import dataclass, field
from typing import Any

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges
from detect.auto import Auto
from detect.deployment.detector import DetectorPrecision, Engine


@dataclass(frozen=True, kw_only=True)
class DeploymentConfig:
    """How a detector is run."""

    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the detector with other values than in training, keys as for train_detector:
    `--model.proposal_score_thresh 0.1 --model.rcnn.nms_thresh 0.4`."""
    precision: DetectorPrecision = "auto"
    """Numbers that the networks compute in: `bf16`, `fp32`, or `int8`, which sets its ranges by
    example images and needs the openvino extra; `auto` takes bf16 where the device has
    instructions for it."""
    engine: Engine = "auto"
    """What runs the crop network: `torch`, or `openvino` (the openvino extra), which is faster on a
    CPU and takes seconds to prepare; `auto` takes `openvino` for `int8` alone."""


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(DeploymentConfig):
    """How a detector is run, where, and what is shown of what it finds."""

    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    score_thresh: float | Auto = "auto"
    """Score in 0..1 below which detections are not shown."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"[0, 1]": "score_thresh"})


def check_calibration_split(scored: str | None, calibration: str | None, *, is_int8: bool) -> None:
    """Raise `UserError` unless `int8`, and nothing else, has a split to set its ranges by, which is
    not the one that is scored: scores on images that a detector was fitted to say too much."""
    if is_int8 != (calibration is not None):
        raise UserError("precision int8 and calibration_split belong together: name both")
    if calibration is not None and calibration == scored:
        raise UserError(
            f"calibration_split must be another split than the one that is scored, {scored}: "
            "name that of training"
        )
