import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from detect.rcnn.crops import crop_regions, crop_windows, split_evenly
from detect.rcnn.resampling import levels_for, resample_by_opencv, resample_by_roi_align

GREY = (128, 102, 77)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def photograph(height: int, width: int) -> torch.Tensor:
    """Smooth shapes, eight in each direction."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 255
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")[0]
    return smooth.clamp(0, 255).to(torch.uint8)


def crop(images, boxes, size=8, mode="warp", context=0.0):
    return crop_regions(images, boxes, size=size, fill=GREY, mode=mode, context=context)


def test_a_box_of_the_crop_size_is_copied_exactly():
    image = noise(40, 50)
    got = crop([image], [torch.tensor([[10.0, 20.0, 18.0, 28.0]])])
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got[0], image[:, 20:28, 10:18])


@pytest.mark.parametrize(("across", "down"), [(2, 2), (4, 4), (1, 4), (8, 2)])
def test_shrinking_is_the_mean_of_the_pixels_covered(across, down):
    # A pattern of stripes that plain bilinear sampling would alias into stripes.
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, :, ::2] = 200
    image[:, ::2] //= 2
    width, height = 8 * across, 8 * down
    got = crop([image], [torch.tensor([[16.0, 16.0, 16 + width, 16 + height]])])
    inside = image[None, :, 16 : 16 + height, 16 : 16 + width].float()
    want = F.avg_pool2d(inside, (down, across))
    assert (got - want).abs().max() <= 1


@pytest.mark.parametrize("factor", [3, 5, 9, 20])
def test_shrinking_a_photograph_is_near_the_mean_of_its_pixels(factor):
    """By factors between the levels of the pyramid too."""
    image = photograph(200, 200)
    side = 8 * factor
    got = crop([image], [torch.tensor([[16.0, 24.0, 16.0 + side, 24.0 + side]])])
    inside = image[None, :, 24 : 24 + side, 16 : 16 + side].float()
    want = F.avg_pool2d(inside, factor)
    assert (got - want).abs().max() < 0.2 * want.std()


def test_enlarging_is_bilinear():
    image = noise(20, 20)
    got = crop([image], [torch.tensor([[4.0, 4.0, 8.0, 8.0]])], size=8)
    whole = F.interpolate(image[None].float(), scale_factor=2, mode="bilinear", align_corners=False)
    assert (got[0] - whole[0, :, 8:16, 8:16]).abs().max() <= 1


def test_outside_of_the_image_is_the_fill_colour():
    image = torch.full((3, 10, 10), 255, dtype=torch.uint8)
    got = crop([image], [torch.tensor([[-16.0, -16.0, 16.0, 16.0]])], size=16)[0]
    colour = torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)
    assert (got[:, :7, :] == colour).all()
    assert (got[:, :, :7] == colour).all()
    assert (got[:, 9:12, 9:12] > colour).all()
    assert (got[:, 14:, :] == colour).all()


@pytest.mark.parametrize("x", [-100.0, 100.0])
def test_a_window_beside_the_image_has_the_fill_colour(x):
    got = crop([noise(10, 10)], [torch.tensor([[x, 0.0, x + 20, 9.0]])])
    assert (got == torch.tensor(GREY, dtype=torch.uint8).view(3, 1, 1)).all()


def test_what_opencv_gets_is_never_longer_than_it_counts():
    windows = torch.tensor([[0.0, 0, 40_000, 100], [0, 0, 60, 200_000], [5, 5, 45, 45]])
    levels = levels_for(windows, 79)
    assert levels.tolist() == [2, 4, 0]
    assert ((windows[:, 2:] - windows[:, :2]).max(dim=1).values / 2.0**levels <= 2**14).all()
    image = photograph(100, 40_000)
    got = crop([image], [torch.tensor([[0.0, 0.0, 40_000.0, 100.0]])])
    want = F.adaptive_avg_pool2d(image[None].float(), 8)
    assert (got - want).abs().max() < 0.2 * want.std()


def test_a_box_a_rounding_error_wide():
    left = torch.tensor(500.0)
    box = torch.stack([left, left, left.nextafter(torch.tensor(501.0)), left + 9])
    assert crop([noise(600, 600)], [box[None]]).shape == (1, 3, 8, 8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 8))
def test_batches_are_even_and_in_order(counts, limit):
    total = sum(counts)
    if total == 0:
        return
    boxes = torch.arange(4.0 * total).view(-1, 4)
    batches = list(split_evenly(boxes.split(counts), limit))
    # Of each image its own, in their order.
    assert all(
        torch.equal(torch.cat(parts), own)
        for parts, own in zip(zip(*batches, strict=True), boxes.split(counts), strict=True)
    )
    sizes = [sum(map(len, batch)) for batch in batches]
    assert max(sizes) <= limit
    assert len(sizes) == math.ceil(total / limit)
    assert max(sizes) - min(sizes) < len(sizes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 33))
def test_both_ways_to_resample_agree(seed, size):
    """On windows of all shapes and sizes, of which some reach outside."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(12, 90, 2))
    image = photograph(height, width)
    corners = rng.uniform(-20, 80, (6, 2))
    sides = np.exp(rng.uniform(0, 5, (6, 2)))
    windows = torch.tensor(np.hstack([corners, corners + sides]), dtype=torch.float32)
    levels = levels_for(windows, size)
    windows = windows * 0.5 ** levels[:, None]
    one = resample_by_opencv(image, windows, levels, size, GREY).float()
    # Beside another image, of another size.
    other = resample_by_roi_align(
        [photograph(50, 70), image], [windows[:1], windows], [levels[:1], levels], size, GREY
    )[1:].float()
    # OpenCV places samples to within 1/64 of a pixel; at the border colours may differ by 255.
    assert (one - other).abs().max() <= 6
    assert (one - other).abs().mean() < 0.7


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
