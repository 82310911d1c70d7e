import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.common.errors import UserError
from detect.data.augmentation import (
    MIN_SIDE,
    MIN_VISIBILITY,
    AugmentConfig,
    augment,
    rescale_boxes,
    resize_image,
)

NONE = AugmentConfig(flip=0.0, vertical_flip=0.0, scale=(1.0, 1.0), colour=0.0)
EACH = {
    "flip": dataclasses.replace(NONE, flip=1.0),
    "vertical_flip": dataclasses.replace(NONE, vertical_flip=1.0),
    "scale": dataclasses.replace(NONE, scale=(0.5, 1.6)),
    "colour": dataclasses.replace(NONE, colour=0.3),
}
ALL = AugmentConfig(flip=0.5, vertical_flip=0.5, scale=(0.7, 1.4), colour=0.1)
COLOURS = [(230, 30, 30), (30, 230, 30), (30, 30, 230)]


def painted(boxes: list[tuple[int, int, int, int]], height: int = 120, width: int = 160) -> Tensor:
    image = torch.full((3, height, width), 20, dtype=torch.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, COLOURS, strict=True):
        image[:, y1:y2, x1:x2] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return image


def find_painted(image: Tensor, channel: int) -> Tensor:
    """The box of the pixels in which one colour is strongest."""
    pixels = image.int()
    others = [other for other in range(3) if other != channel]
    mask = pixels[channel] - pixels[others].max(dim=0).values > 90
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


BOXES = [(10, 15, 50, 45), (70, 60, 110, 110), (120, 10, 150, 50)]


@pytest.mark.parametrize("config", [*EACH.values(), ALL], ids=[*EACH, "all"])
@pytest.mark.parametrize("seed", range(12))
def test_image_and_boxes_stay_together(config: AugmentConfig, seed: int) -> None:
    labels = torch.tensor([7, 8, 9])
    image, boxes, kept = augment(
        painted(BOXES), torch.tensor(BOXES, dtype=torch.float32), labels, config, seed
    )
    assert (image.dtype, boxes.dtype, kept.dtype) == (torch.uint8, torch.float32, torch.int64)
    assert image.permute(1, 2, 0).is_contiguous()
    assert len(boxes) == len(kept)
    for box, label in zip(boxes, kept.tolist(), strict=True):
        expected = find_painted(image, label - 7)
        # Half a pixel of the grid, and blur where the image is enlarged.
        torch.testing.assert_close(box, expected, atol=1.5, rtol=0)


def change(config: AugmentConfig, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The painted image of `BOXES` and labels 1, 2, 3, changed."""
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    return augment(painted(BOXES), boxes, torch.tensor([1, 2, 3]), config, seed)


def test_without_changes_all_stays_as_it_is() -> None:
    image, boxes, labels = change(NONE)
    assert torch.equal(image, painted(BOXES))
    torch.testing.assert_close(boxes, torch.tensor(BOXES, dtype=torch.float32))
    assert labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "axis", "box"),
    [("flip", 2, [110, 15, 150, 45]), ("vertical_flip", 1, [10, 75, 50, 105])],
)
def test_a_flip_mirrors_image_and_boxes(name: str, axis: int, box: list[int]) -> None:
    image, boxes, labels = change(EACH[name])
    assert torch.equal(image, painted(BOXES).flip(axis))
    # The image is 160 wide and 120 high, the first box [10, 15, 50, 45].
    torch.testing.assert_close(boxes[0], torch.tensor(box, dtype=torch.float32))
    assert labels.tolist() == [1, 2, 3]


def test_scale_is_the_range_of_the_factor_of_sizes() -> None:
    """Of an object that is shown whole; the example has the picture's size."""
    factors = []
    for seed in range(200):
        image, boxes, labels = change(EACH["scale"], seed)
        assert image.shape == (3, 120, 160)
        for label, box in zip(labels.tolist(), boxes, strict=True):
            sides = box[2:] - box[:2]
            if box.min() > 0.1 and (box[2:] < torch.tensor([159.9, 119.9])).all():
                before = torch.tensor(BOXES[label - 1]).float()
                # To a pixel that the picture is rounded to.
                factor = sides / (before[2:] - before[:2])
                torch.testing.assert_close(factor[0], factor[1], atol=0.02, rtol=0)
                factors.append(float(factor.mean()))
    assert 0.49 < min(factors) < 0.55
    assert 1.5 < max(factors) < 1.61


def test_probabilities_are_those_of_the_configuration() -> None:
    """Of 300 images; four standard deviations are 0.1."""
    image = torch.arange(3 * 20 * 20, dtype=torch.int64).to(torch.uint8).view(3, 20, 20)
    boxes, labels = torch.tensor([[2.0, 2, 8, 8]]), torch.tensor([1])
    for name in ("flip", "vertical_flip"):
        config = dataclasses.replace(NONE, **{name: 0.25})
        results = (augment(image, boxes, labels, config, seed)[0] for seed in range(300))
        share = np.mean([not torch.equal(result, image) for result in results])
        assert 0.15 < share < 0.35, name


def test_colour_changes_brightness_and_hue() -> None:
    image = painted(BOXES)[:, 15:45, 10:50]
    results = [
        augment(image, torch.zeros(0, 4), torch.zeros(0).long(), EACH["colour"], seed)[0][:, 0, 0]
        for seed in range(10)
    ]
    red, green, blue = torch.stack(results).int().unbind(1)
    assert red.max() - red.min() > 30
    # Brightness, contrast and saturation keep green and blue as equal as they were.
    assert (green - blue).max() > 5
    assert (green - blue).min() < -5


def test_colour_is_the_fraction_that_brightness_changes_by() -> None:
    """A grey image has no hue, saturation or contrast to change."""
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    for colour in (0.1, 0.3):
        config = dataclasses.replace(NONE, colour=colour)
        values = [
            int(augment(grey, torch.zeros(0, 4), torch.zeros(0).long(), config, seed)[0][0, 0, 0])
            for seed in range(60)
        ]
        assert min(values) == pytest.approx(100 - 100 * colour, abs=3)
        assert max(values) == pytest.approx(100 + 100 * colour, abs=3)


def test_seed_decides_everything() -> None:
    image, boxes, labels = painted(BOXES), torch.tensor(BOXES).float(), torch.tensor([1, 2, 3])
    results = [augment(image, boxes, labels, ALL, seed) for seed in (5, 6, 5)]
    for first, again in zip(results[0], results[2], strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(results[0][0], results[1][0])


def test_flips_are_independent() -> None:
    config = dataclasses.replace(NONE, flip=0.5, vertical_flip=0.5)
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    image[:, 0, 0] = 255
    corners = [
        int(augment(image, torch.zeros(0, 4), torch.zeros(0).long(), config, seed)[0][0].argmax())
        for seed in range(200)
    ]
    assert min(np.bincount(corners, minlength=4)) > 25


def test_inputs_are_not_changed() -> None:
    image, boxes, labels = painted(BOXES), torch.tensor(BOXES).float(), torch.tensor([1, 2, 3])
    boxes[0] = torch.tensor([-20.0, -20, 300, 300])
    before = image.clone(), boxes.clone(), labels.clone()
    augment(image, boxes, labels, ALL, 1)
    assert all(torch.equal(*pair) for pair in zip(before, (image, boxes, labels), strict=True))


def test_boxes_outside_are_clipped_or_dropped() -> None:
    boxes = torch.tensor([[-5.0, 10, 30, 40], [200, 10, 220, 30], [10, 10, 10, 30], [0, 0, 9, 9]])
    _, new_boxes, labels = augment(painted(BOXES), boxes, torch.tensor([4, 5, 6, -1]), NONE, 0)
    assert labels.tolist() == [4, -1]
    torch.testing.assert_close(new_boxes, torch.tensor([[0.0, 10, 30, 40], [0, 0, 9, 9]]))


@pytest.mark.parametrize("config", [*EACH.values(), ALL], ids=[*EACH, "all"])
def test_no_boxes(config: AugmentConfig) -> None:
    _, boxes, labels = augment(
        painted(BOXES), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), config, 0
    )
    assert boxes.shape == (0, 4)
    assert (boxes.dtype, labels.dtype, labels.shape) == (torch.float32, torch.int64, (0,))


def test_what_is_shown_of_an_object_decides_whether_it_counts() -> None:
    """A tall object and windows that end at any of its rows."""
    image = torch.zeros(3, 100, 10, dtype=torch.uint8)
    box, seen = torch.tensor([[0.0, 20, 10, 80]]), []
    for seed in range(200):
        _, boxes, labels = augment(image, box, torch.tensor([5]), NONE, seed, canvas=30)
        assert len(boxes) == len(labels)
        seen += (boxes[:, 3] - boxes[:, 1]).tolist()
    assert min(seen) >= MIN_VISIBILITY * 60 - 1e-3
    assert max(seen) == 30
    assert 50 < len(seen) < 200


def test_boxes_that_rounding_leaves_without_area_are_left_out() -> None:
    """From a labeller's slip; a traceback in the middle of training otherwise."""
    image = torch.zeros(3, 400, 600, dtype=torch.uint8)
    boxes = torch.tensor([[599.95, 10.0, 600.0, 60.0], [10, 10, 10.3, 60], [10, 10, 40, 60]])
    labels = torch.tensor([1, 2, 3])
    for seed in range(20):
        _, new, kept = augment(image, boxes, labels, EACH["scale"], seed)
        assert 1 not in kept.tolist()
        assert (new[:, 2:] - new[:, :2] >= MIN_SIDE - 1e-4).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_tiny_images(size: tuple[int, int]) -> None:
    for seed in range(5):
        image, _, _ = augment(
            torch.zeros(3, *size, dtype=torch.uint8),
            torch.tensor([[0.0, 0, 1, 1]]),
            torch.tensor([1]),
            dataclasses.replace(ALL, scale=(0.2, 0.3)),
            seed,
        )
        assert min(image.shape) >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": 1.5}, "augment.flip must be in [0, 1], got 1.5"),
        ({"vertical_flip": -0.1}, "augment.vertical_flip must be in [0, 1], got -0.1"),
        ({"window": 32}, "augment.window must be at least 64, got 32"),
        ({"colour": 2.0}, "augment.colour must be in [0, 1], got 2.0"),
        (
            {"scale": (1.2, 0.8)},
            "augment.scale must be (low, high) with 0 < low <= high, got (1.2, 0.8)",
        ),
    ],
)
def test_config_errors(change: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        AugmentConfig(**change)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (240, 1000), (240, 320)),
        ((480, 640), (480, 320), (240, 320)),
        ((100, 50), (100, 1000), (200, 100)),
        ((2, 1000), (100, 200), (1, 200)),
    ],
)
def test_resize_image(
    size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = resize_image(torch.zeros(3, *size, dtype=torch.uint8), *limits)
    assert image.shape == (3, *expected)
    assert image.dtype == torch.uint8


def test_rescaled_boxes_fit_the_resized_image_and_map_back() -> None:
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    image = resize_image(painted(BOXES), 300, 1000)
    assert image.shape == (3, 300, 400)
    new_boxes = rescale_boxes(boxes, (120, 160), (300, 400))
    for channel in range(3):
        expected = find_painted(image, channel)
        torch.testing.assert_close(new_boxes[channel], expected, atol=1.5, rtol=0)
    torch.testing.assert_close(rescale_boxes(new_boxes, (300, 400), (120, 160)), boxes)
