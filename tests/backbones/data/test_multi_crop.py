"""The 12 and 144 crops of the papers: where they lie, and that their probabilities are averaged."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import create_backbone
from backbones.classification.evaluation import (
    Predictions,
    average,
    class_scores,
    predict,
    top_scores,
)
from backbones.common.errors import UserError
from backbones.common.images import EncodedImage
from backbones.data.datasets import EvaluationImages, collate
from backbones.data.multi_crop import multi_crop
from backbones.data.sources import open_split
from backbones.data.transforms import eval_transform


def ramps(height: int, width: int) -> EncodedImage:
    """Red is the column and green the row, in 1/255 of the longer side."""
    rows, columns = np.mgrid[:height, :width]
    scale = 255 / max(height, width)
    pixels = np.stack([columns * scale, rows * scale, 0 * rows], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue(), "a")


def extents(crop: torch.Tensor, longer: int) -> tuple[float, ...]:
    """Left, top, right, bottom of a crop in the image's pixels, read off its colours."""
    values = crop.float() * longer / 255
    half = (values[0, 0, -1] - values[0, 0, 0]) / (crop.shape[2] - 1) / 2
    left, top = values[0, 0, 0] - half, values[1, 0, 0] - half
    right, bottom = values[0, 0, -1] + half, values[1, -1, 0] + half
    return tuple(float(value) for value in (left, top, right, bottom))


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200), (240, 240)])
def test_the_144_crops_are_googlenets(height, width):
    size = 56
    crops = multi_crop(ramps(height, width), size, 144)
    assert crops.shape == (144, 3, size, size)
    assert torch.equal(crops[72:], crops[:72].flip(-1))
    expected = []
    short = min(height, width)
    for scale in (256, 288, 320, 352):
        part = short * 224 / scale  # side of a crop in the image's pixels
        for slack in (0, 0.5, 1):
            x, y = slack * (width - short), slack * (height - short)
            far = short - part
            for dx, dy in ((0, 0), (far, 0), (0, far), (far, far), (far / 2, far / 2)):
                expected.append((x + dx, y + dy, x + dx + part, y + dy + part))
            expected.append((x, y, x + short, y + short))
    for crop, place in zip(crops, expected, strict=False):
        # Two pixels of rounding colours and places, and the blur at the image's edge.
        assert extents(crop, max(height, width)) == pytest.approx(place, abs=5)
    assert len(expected) == 72


def test_the_12_crops_are_those_of_the_first_scales_central_square():
    crops = multi_crop(ramps(200, 300), 56, 144)
    assert torch.equal(multi_crop(ramps(200, 300), 56, 12)[:6], crops[6:12])
    assert torch.equal(multi_crop(ramps(200, 300), 56, 12)[6:], crops[78:84])
    # Its fifth crop is the one of single-crop evaluation.
    single = eval_transform(ramps(200, 300), 56, crop_fraction=0.875)
    assert (crops[10].int() - single.int()).abs().max() <= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images of two classes, and one that is broken."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (root / "val" / name).mkdir(parents=True)
        for index in range(3):
            pixels = random.integers(100 * label, 100 * label + 155, (90, 120, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{index}.jpg")
    (root / "val" / "dark" / "3.jpg").write_bytes(b"broken")
    return root


def network(seed: int, size: str = "79_naive") -> torch.nn.Module:
    torch.manual_seed(seed)
    model = create_backbone(f"inception_v3_{size}", num_classes=2, width=0.25)
    torch.nn.init.normal_(model.fc.weight, std=0.5)
    return model.eval()


@torch.no_grad()
def test_probabilities_are_averaged_over_crops_and_networks(folder):
    source = open_split(folder, "val")
    models = [network(0), network(1)]
    results = [predict(model, source, 12, batch_size=30) for model in models]
    crops = collate([EvaluationImages(source, 79, 0.875, crops=12)[i] for i in range(7)])
    assert crops.images.shape == (6, 12, 3, 79, 79)
    for model, result in zip(models, results, strict=True):
        inputs = (crops.images.float() / 255 - 0.5) / 0.5
        expected = torch.stack([model(image).softmax(dim=1).mean(dim=0) for image in inputs])
        torch.testing.assert_close(result.probabilities, expected, atol=1e-4, rtol=1e-3)
        assert result.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(result.skipped) == 1
        assert "3.jpg: not an image" in result.skipped[0]
    both = average(results)
    expected = (results[0].probabilities + results[1].probabilities) / 2
    torch.testing.assert_close(both.probabilities, expected)
    assert len(both.skipped) == 1


def test_the_batch_size_changes_nothing(folder):
    source = open_split(folder, "val")
    results = [predict(network(0), source, 12, batch_size=size) for size in (5, 64)]
    torch.testing.assert_close(results[0].probabilities, results[1].probabilities)


def test_no_image_can_be_read(tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a" / "0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images can be read: .*0\.jpg"):
        predict(network(0), open_split(tmp_path, "val"))


def test_scores_of_classes():
    probabilities = torch.eye(3)[[0, 1, 1, 2, 0, 1]]
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    predictions = Predictions(probabilities, labels, [str(i) for i in range(6)], [])
    scores = class_scores(predictions, ["a", "b", "c"])
    assert [(s.name, s.images, s.top1) for s in scores] == [("c", 2, 0.0), ("a", 4, 0.25)]
    assert scores[1].taken_for == [("b", 2), ("c", 1)]
    assert top_scores(predictions) == {"top1": 1 / 6, "top5": 1.0}


def test_networks_that_saw_other_images_are_no_ensemble():
    one = Predictions(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), ["a"], [])
    other = Predictions(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), ["b"], [])
    with pytest.raises(UserError, match="could be read for one network and not for another"):
        average([one, other])
