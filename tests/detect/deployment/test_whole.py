"""A detector as one graph, and its suppression in ONNX's operators, beside the product's own."""

import pytest
import torch
from helpers.untrained_detector import save_untrained
from torch import nn

from backbones.common.errors import UserError
from detect import load_detector
from detect.boxes.suppression import hard_nms, soft_nms
from detect.deployment.whole import WholeDetector, hard_nms_op, soft_nms_op

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class _Suppression(nn.Module):
    def forward(self, boxes, scores, labels):
        soft = soft_nms_op(boxes, scores, labels, 0.01, 0.0, 30)
        return hard_nms_op(boxes, scores, labels, 0.3, 12), *soft


def test_suppression_in_onnx_is_ours():
    from backbones.deployment.onnx import to_onnx
    from detect.deployment.suppression import TRANSLATIONS

    random = torch.Generator().manual_seed(0)
    boxes = torch.rand(40, 4, generator=random) * 20
    boxes[:, 2:] += boxes[:, :2] + 5
    boxes[1] = boxes[0]  # of which a small sigma leaves nothing
    scores = torch.rand(40, generator=random)
    labels = torch.randint(1, 4, (40,), generator=random)
    labels[1] = labels[0]
    dynamic = ({0: torch.export.Dim.DYNAMIC},) * 3
    with torch.no_grad():
        program = torch.export.export(
            _Suppression(), (boxes, scores, labels), dynamic_shapes=dynamic
        )
    names = ["in_boxes", "in_scores", "in_labels"]
    data = to_onnx(program, names, ["out_hard", "out_soft", "out_scores"], {}, TRANSLATIONS)
    session = onnxruntime.InferenceSession(data)
    for count in (40, 17, 2):
        own = [tensor[:count] for tensor in (boxes, scores, labels)]
        hard, soft, found = session.run(
            None, {name: one.numpy() for name, one in zip(names, own, strict=True)}
        )
        assert hard.tolist() == hard_nms(*own, 0.3, limit=12).tolist()
        chosen, lowered = soft_nms(*own, sigma=0.01, score_thresh=0.0, limit=30)
        # Scores that are all but zero may be smaller than the smallest numbers of one of the two.
        wanted = lowered > 1e-20
        assert soft[: wanted.sum()].tolist() == chosen[wanted].tolist()
        torch.testing.assert_close(torch.from_numpy(found[: wanted.sum()]), lowered[wanted])


@pytest.mark.parametrize("size", [(50, 64), (90, 131)])
def test_the_graph_in_pytorch_finds_what_the_detector_does(size, tmp_path):
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 2), "cpu")
    torch.nn.init.normal_(detector.model.cls_score.weight, std=0.5)
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    image = nn.functional.interpolate(image[None].float(), size, mode="bilinear")[0].byte()
    with torch.inference_mode():
        boxes, labels, scores = WholeDetector(detector.model)(image.permute(1, 2, 0).contiguous())
    expected = detector.detect_tensors([image])[0]
    assert len(boxes) == len(expected["boxes"]) > 0
    # In the order of labels and places: scores may change places by rounding.
    for label in (1, 2):
        ours, theirs = boxes[labels == label], expected["boxes"][expected["labels"] == label]
        assert len(ours) == len(theirs)
        nearest = torch.cdist(ours, theirs).min(dim=1)
        assert nearest.values.max() < 2
        difference = (
            scores[labels == label]
            - expected["scores"][expected["labels"] == label][nearest.indices]
        )
        assert difference.abs().max() < 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"learned": {"scale": 1.0}},
            r"in tiles \(model.learned.scale 1\).*--model.learned.scale null",
        )
    ],
)
def test_what_cannot_be_exported_is_named(settings, words, tmp_path):
    detector = load_detector(save_untrained(tmp_path / "x.safetensors", 2), "cpu", settings)
    with pytest.raises(UserError, match=words):
        WholeDetector(detector.model)
