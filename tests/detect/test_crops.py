import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from backbones.normalization import normalize
from detect.crops import crop_regions, crop_windows

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def crop(images, boxes, size=8, mode="warp", context=0.0):
    return crop_regions(images, boxes, size=size, mean=MEAN, std=STD, mode=mode, context=context)


def test_a_box_of_the_crop_size_is_copied_exactly():
    image = noise(40, 50)
    got = crop([image], [torch.tensor([[10.0, 20.0, 18.0, 28.0]])])
    want = normalize(image[None], MEAN, STD)[0, :, 20:28, 10:18]
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_is_the_mean_of_the_pixels_covered(factor):
    # A stripe pattern that plain bilinear sampling would alias into stripes.
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :, ::2] = 255
    side = 8.0 * factor
    got = crop([image], [torch.tensor([[16.0, 16.0, 16 + side, 16 + side]])])
    inside = normalize(image[None], MEAN, STD)[:, :, 16 : 16 + int(side), 16 : 16 + int(side)]
    torch.testing.assert_close(got, F.avg_pool2d(inside, factor), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [3, 5, 9, 20])
def test_shrinking_a_photograph_is_near_the_mean_of_its_pixels(factor):
    """By factors between the levels of the pyramid too, and beyond them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 12, generator=generator) * 255
    image = F.interpolate(coarse, (200, 200), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
    side = 8 * factor
    got = crop([image], [torch.tensor([[16.0, 24.0, 16.0 + side, 24.0 + side]])])
    inside = normalize(image[None], MEAN, STD)[:, :, 24 : 24 + side, 16 : 16 + side]
    want = F.avg_pool2d(inside, factor)
    assert (got - want).abs().max() < 0.2 * want.std()


def test_enlarging_is_bilinear():
    image = noise(20, 20)
    got = crop([image], [torch.tensor([[4.0, 4.0, 8.0, 8.0]])], size=8)
    whole = normalize(image[None], MEAN, STD)
    want = F.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(got[0], want[0, :, 8:16, 8:16], rtol=0, atol=1e-5)


def test_outside_of_the_image_is_the_mean_colour():
    image = torch.full((3, 10, 10), 255, dtype=torch.uint8)
    got = crop([image], [torch.tensor([[-16.0, -16.0, 16.0, 16.0]])], size=16)[0]
    assert (got[:, :7, :] == 0).all()
    assert (got[:, :, :7] == 0).all()
    assert (got[:, 9:12, 9:12] > 0).all()
    assert (got[:, 14:, :] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["warp", "square"]))
def test_a_crop_is_the_same_bit_for_bit_whatever_shares_its_batch(seed, mode):
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for i in range(3):
        height, width = (int(side) for side in rng.integers(12, 60, 2))
        images.append(noise(height, width, seed + i))
        corners = rng.uniform(-5, 50, (4, 2))
        sides = rng.uniform(1, 40, (4, 2))
        boxes.append(torch.tensor(np.hstack([corners, corners + sides]), dtype=torch.float32))
    together = crop(images, boxes, mode=mode, context=0.07)
    alone = [
        crop([image], [box[None]], mode=mode, context=0.07)
        for image, image_boxes in zip(images, boxes, strict=True)
        for box in image_boxes
    ]
    assert torch.equal(together, torch.cat(alone))


def test_windows_of_the_original_rcnn():
    box = torch.tensor([[10.0, 20.0, 50.0, 40.0]])
    window = crop_windows(box, "warp", 16 / 227)
    sides = window[0, 2:] - window[0, :2]
    torch.testing.assert_close(sides, torch.tensor([40.0, 20.0]) * 227 / 195)
    square = crop_windows(box, "square", 0.0)
    torch.testing.assert_close(square, torch.tensor([[10.0, 10.0, 50.0, 50.0]]))


def test_no_boxes_give_no_crops():
    assert crop([noise(9, 9)], [torch.zeros(0, 4)]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "bad", [[5.0, 5.0, 5.0, 9.0], [5.0, 9.0, 8.0, 2.0], [0.0, 0.0, float("nan"), 4.0]]
)
def test_a_bad_box_is_named(bad):
    good = [1.0, 1.0, 3.0, 3.0]
    with pytest.raises(ValueError, match=r"boxes\[1\]\[1\] = .* x1 < x2"):
        crop([noise(9, 9)] * 2, [torch.tensor([good]), torch.tensor([good, bad])])


def test_bad_settings_are_named():
    box = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    with pytest.raises(ValueError, match="context must be in"):
        crop_windows(box, "warp", 0.5)
    with pytest.raises(ValueError, match="'warp' or 'square', got 'stretch'"):
        crop_windows(box, "stretch", 0.1)
