"""Random and central crops: their sizes, distributions and geometry, at any reduction of a JPEG."""

import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision_functional

from backbones.common.images import EncodedImage, decode_image
from backbones.data.transforms import (
    AugmentConfig,
    eval_transform,
    train_transform,
)
from backbones.networks.normalization import normalize


def encode(pixels, file_format="PNG", **options) -> EncodedImage:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, file_format, **options)
    return EncodedImage(buffer.getvalue(), "a")


def gradient_image(height=50, width=80):
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * columns / width, 255 * rows / height, 0 * rows])
    return encode(pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("size", [79, 151, 299])
def test_transforms_give_the_size(size):
    for image in (gradient_image(), gradient_image(500, 20), gradient_image(1, 1)):
        for result in (
            train_transform(image, size, AugmentConfig(), seed=1),
            eval_transform(image, size),
        ):
            assert result.shape == (3, size, size)
            assert result.dtype == torch.uint8


@pytest.mark.parametrize(("min_area", "max_ratio"), [(0.08, 4 / 3), (0.5, 1.1)])
def test_training_crops_cover_the_stated_areas_and_ratios(min_area, max_ratio):
    config = AugmentConfig(min_area, max_ratio, color_jitter=0.0, flip=False)
    areas, ratios = [], []
    for seed in range(200):
        crop = train_transform(gradient_image(200, 200), 64, config, seed).float()
        width = (crop[0, 32, -1] - crop[0, 32, 0]) / 255 * 64 / 63
        height = (crop[1, -1, 32] - crop[1, 0, 32]) / 255 * 64 / 63
        areas.append(float(width * height))
        ratios.append(float(width / height))
    # Two hundred draws come near the ends; edges are on whole pixels.
    assert 0.9 * min_area < min(areas) < min_area + 0.07
    assert 0.85 < max(areas) < 1.03
    assert 0.93 < min(ratios) * max_ratio < 1.07
    assert 0.93 < max(ratios) / max_ratio < 1.07


@pytest.mark.parametrize(("flip", "low", "high"), [(True, 70, 130), (False, 0, 0)])
def test_flip_mirrors_half_or_none(flip, low, high):
    config = AugmentConfig(color_jitter=0.0, flip=flip)
    crops = [train_transform(gradient_image(), 16, config, seed) for seed in range(200)]
    assert low <= sum(bool(crop[0, 8, 0] > crop[0, 8, -1]) for crop in crops) <= high


def test_eval_crop_is_the_central_part():
    crop = eval_transform(gradient_image(160, 160), 79, crop_fraction=0.875).float() / 255
    assert crop[0, 40, 0].item() == pytest.approx(1 / 16, abs=0.02)
    assert crop[0, 40, -1].item() == pytest.approx(15 / 16, abs=0.02)


def test_normalize():
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = (np.array([0, 128, 255]) / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]
    result = normalize(image, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    np.testing.assert_allclose(result.flatten(), expected, atol=1e-6)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some texture, as in a photograph."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells, contrast in ((4, 60), (16, 25), (64, 10)):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        noise = noise.resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(noise) / 127.5 - 1) * contrast
    return (pixels + 128).clip(0, 255)


class DecodedWhole(EncodedImage):
    """What every reduction is compared with."""

    def reduction(self, height, width, size):
        return 1


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


class Recorded(EncodedImage):
    """Notes at what reductions images were decoded."""

    reductions: ClassVar[set[int]] = set()

    def decode(self, reduction=1):
        self.reductions.add(reduction)
        return super().decode(reduction)


@pytest.mark.parametrize(
    ("height", "width", "size", "reductions"),
    [
        (375, 500, 79, {1, 2, 4}),
        (501, 333, 79, {1, 2}),
        (375, 500, 299, {1}),
        (1203, 1601, 79, {4, 8}),
        (1203, 1601, 299, {1, 2}),
    ],
)
def test_reduced_crops_are_those_of_the_whole_image(height, width, size, reductions):
    data = encode(photo(height, width), "JPEG", quality=92)._data
    Recorded.reductions.clear()
    for seed in range(20):
        reduced = train_transform(Recorded(data, "a"), size, AugmentConfig(), seed)
        whole = train_transform(DecodedWhole(data, "a"), size, AugmentConfig(), seed)
        difference = mean_difference(reduced, whole)
        assert difference < 3, seed
        # A pixel to the side is farther off than the reduction.
        assert difference < 0.7 * mean_difference(torch.roll(whole, 1, dims=2), whole), seed
    assert Recorded.reductions == reductions

    reduced = eval_transform(EncodedImage(data, "a"), size)
    whole = eval_transform(DecodedWhole(data, "a"), size)
    assert mean_difference(reduced, whole) < 2


def test_a_reduced_crop_keeps_the_size_asked_for():
    image = encode(photo(640, 640), "JPEG")
    for side in (79, 157, 158, 315, 316, 631, 632, 640):
        reduction = image.reduction(side, 640, 79)
        assert side / reduction >= 79
        assert reduction == 8 or side / (2 * reduction) < 79
    assert encode(photo(640, 640)).reduction(640, 640, 79) == 1, "PNG has no smaller version"


def test_colours_change_as_in_torchvision():
    """With one factor drawn at a time, against the same image adjusted there."""
    pixels = photo(64, 64)
    plain = AugmentConfig(min_area=1.0, max_ratio=1.0, flip=False, color_jitter=0.0)
    jittered = AugmentConfig(min_area=1.0, max_ratio=1.0, flip=False, color_jitter=0.5)
    for seed in range(30):
        expected = train_transform(encode(pixels), 64, plain, seed)
        assert torch.equal(expected, torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1))
        random = np.random.default_rng(seed)
        random.uniform(size=2)  # area and ratio
        random.integers(1), random.integers(1)  # top and left
        names = ("brightness", "contrast", "saturation")
        for which in random.permutation(3):
            adjust = getattr(torchvision_functional, f"adjust_{names[which]}")
            expected = adjust(expected, random.uniform(0.5, 1.5))
        result = train_transform(encode(pixels), 64, jittered, seed)
        # torchvision rounds down, OpenCV to the nearest, three times over.
        assert (result.int() - expected.int()).abs().max() <= 4


def test_evaluation_is_torchvisions_where_nothing_is_reduced():
    image = encode(photo(200, 320), "JPEG")
    pixels = decode_image(image._data, "a")
    expected = torchvision_functional.resize(pixels, [171], antialias=True)
    expected = torchvision_functional.center_crop(expected, [150, 150])
    assert torch.equal(eval_transform(image, 150), expected)
