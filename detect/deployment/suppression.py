"""Suppression in ONNX's operators, for the operations of `whole`."""

from typing import Any, cast

import onnxscript
import torch
from onnxscript import FLOAT, INT64, opset18

from detect.deployment import whole  # noqa: F401 - registers the operations

op: Any = opset18

SMALLEST = 1e-30
"""Factor of a score at least; zero would make no number of what is taken."""


def _hard_nms(boxes: Any, scores: Any, labels: Any, iou_thresh: float, limit: int) -> Any:
    first, zero, one = (op.Constant(value_ints=[value]) for value in (0, 0, 1))
    most = op.ReduceMax(op.Concat(labels, zero, axis=0), keepdims=0)
    start, step = op.Constant(value_int=0), op.Constant(value_int=1)
    classes = op.Unsqueeze(op.Range(start, op.Add(most, step), step), one)
    own = op.Equal(classes, op.Unsqueeze(labels, first))
    # A row for each class, in which boxes of others score too little to be looked at.
    table = op.Where(own, op.Unsqueeze(scores, first), op.Constant(value_float=-1.0))
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, first),
        op.Unsqueeze(table, first),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou_thresh]),
        op.Constant(value_floats=[-0.5]),
    )
    places = op.Gather(chosen, op.Constant(value_int=2), axis=1)
    count = op.Min(op.Shape(places), op.Constant(value_ints=[limit]))
    _, best = op.TopK(op.Gather(scores, places), count)
    return op.Gather(places, best)


@onnxscript.script(opset=onnxscript.values.Opset("lowres_rcnn", 1), default_opset=op)
def _soft_scores(
    boxes: FLOAT[...],
    scores: FLOAT[None],
    labels: INT64[None],
    sigma: FLOAT,
    thresh: FLOAT,
    limit: INT64[1],
    smallest: FLOAT,
    gone: FLOAT,
) -> FLOAT[None]:
    # Of each box the score that it was taken with, and of the others -1.
    left = op.Identity(scores)
    found = op.Sub(op.Mul(scores, 0.0), 1.0)
    places = op.Range(0, op.Squeeze(op.Shape(scores)), 1)
    most = op.Squeeze(op.Min(op.Shape(scores), limit))
    low = op.Slice(boxes, [0], [2], [1])
    high = op.Slice(boxes, [2], [4], [1])
    area = op.ReduceProd(high - low, [1], keepdims=0)
    taken_count = op.Constant(value_int=0)
    more = most > 0
    while more:
        best = op.ArgMax(left, axis=0)
        taken = op.Equal(places, best)
        found = op.Where(taken, left, found)
        sides = op.Relu(op.Min(high, op.Gather(high, best)) - op.Max(low, op.Gather(low, best)))
        shared = op.ReduceProd(sides, [1], keepdims=0)
        iou = shared / (area + op.Gather(area, best) - shared)
        decay = op.Max(op.Exp(op.Neg(iou * iou / sigma)), smallest)
        lowered = op.Where(op.Equal(labels, op.Gather(labels, best)), left * decay, left)
        left = op.Where(taken, gone, lowered)
        taken_count = taken_count + 1
        more = op.And(taken_count < most, op.ReduceMax(left, keepdims=0) >= thresh)
    return found


def _soft_nms(
    boxes: Any, scores: Any, labels: Any, sigma: float, score_thresh: float, limit: int
) -> Any:
    numbers = (op.Constant(value_float=value) for value in (sigma, score_thresh))
    ends = (op.Constant(value_float=value) for value in (SMALLEST, float("-inf")))
    most = op.Constant(value_ints=[limit])
    found = cast(Any, _soft_scores)(boxes, scores, labels, *numbers, most, *ends)
    taken = op.Cast(op.GreaterOrEqual(found, op.Constant(value_float=0.0)), to=7)
    best, places = op.TopK(found, op.ReduceSum(taken, keepdims=1))
    return places, best


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.lowres_rcnn.hard_nms.default: _hard_nms,
    torch.ops.lowres_rcnn.soft_nms.default: _soft_nms,
}
"""What `torch.onnx.export` makes of them."""
