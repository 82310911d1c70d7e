"""What a detector checks of its arguments, so that a mistake is named and not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detect.rcnn.crops import check_boxes

FAR_LARGER = 2.0
"""Longest side of an image beside that of all training images, from which on a warning is due."""


def check_images(images: Sequence[Tensor]) -> None:
    """Raise `ValueError`, naming the image, unless all are `uint8 [3, H, W]` and there is one."""
    if not len(images):
        raise ValueError("images must hold at least one image")
    for i, image in enumerate(images):
        check_image(image, f"images[{i}]")


def check_image(image: Tensor, name: str) -> None:
    """Raise `ValueError` unless it is `uint8 [3, H, W]` with a pixel at least."""
    is_rgb = image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0
    if not is_rgb or image.dtype != torch.uint8:
        raise ValueError(
            f"{name} must be uint8 RGB [3, H, W], got {image.dtype} {list(image.shape)}"
        )


def as_pixels(images: Sequence[Tensor]) -> list[Tensor]:
    """Images of torchvision's detectors, floats in `[0, 1]`, as `uint8`, which others stay.

    Raises:
        ValueError: values outside `[0, 1]`, or what `check_images` refuses; it names the image.
    """
    pixels = list(images)
    for i, image in enumerate(pixels):
        if image.is_floating_point() and image.numel():
            low, high = (value.item() for value in image.aminmax())
            if not (low >= 0 and high <= 1):  # NaN is neither
                raise ValueError(
                    f"images[{i}] must be uint8, or float in [0, 1] and not normalised by a mean, "
                    f"got {image.dtype} from {low:g} to {high:g}"
                )
            pixels[i] = (255 * image).round().to(torch.uint8)
    check_images(pixels)
    return pixels


def check_targets(
    images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], num_classes: int
) -> None:
    """Raise `ValueError`, naming image and box, unless there is one good target for each image:
    `boxes` `[G_i, 4]` xyxy in pixels of the image and `labels` `[G_i]` in `1..num_classes`."""
    if len(targets) != len(images):
        raise ValueError(f"got {len(images)} images but {len(targets)} targets")
    for i, target in enumerate(targets):
        if missing := {"boxes", "labels"} - target.keys():
            raise ValueError(f"targets[{i}] has no {' and no '.join(sorted(missing))}")
    check_boxes([target["boxes"] for target in targets], "target boxes")
    boxes = torch.cat([target["boxes"] for target in targets])
    if len(boxes) > 1 and float(boxes.max()) <= 1:
        raise ValueError(
            "target boxes must be in pixels, got none beyond the first pixel of its image: are "
            "these fractions of the image's sides?"
        )
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        _check_inside(target["boxes"], image, f"targets[{i}] boxes")
        labels = target["labels"]
        if labels.dtype != torch.int64:
            raise ValueError(f"targets[{i}] labels must be int64, got {labels.dtype}")
        if len(labels) != len(target["boxes"]):
            raise ValueError(
                f"targets[{i}] has {len(target['boxes'])} boxes but {len(labels)} labels"
            )
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= num_classes:
            raise ValueError(
                f"targets[{i}] labels must be in 1..{num_classes} (0 is background), "
                f"got {labels.tolist()}"
            )


def _check_inside(boxes: Tensor, image: Tensor, name: str) -> None:
    if not len(boxes):
        return
    height, width = image.shape[1:]
    reach = torch.maximum(-boxes, boxes - boxes.new_tensor([width, height, width, height]))
    worst = int(reach.amax(dim=1).argmax())
    # Rounding may lead out of the image by less than a pixel.
    if float(reach[worst].max()) > 1:
        raise ValueError(
            f"{name}[{worst}] must be xyxy in pixels of its image of {width}x{height}, "
            f"got {boxes[worst].tolist()}"
        )


def shrinking(metadata: Mapping[str, Any], images: Sequence[Tensor]) -> str | None:
    """What to warn of where images `[3, H, W]` are far larger than those of training, by a
    detector's metadata, and are seen as a whole."""
    trained, config = metadata.get("largest_image"), metadata.get("config", {})
    if trained is None or config.get("proposer") != "learned":
        return None
    learned = config["learned"]
    height, width = max((image.shape[1:] for image in images), key=max)
    if learned["scale"] is not None or max(height, width) <= FAR_LARGER * trained:
        return None
    tile = learned["tile_size"]
    return (
        f"an image of {width}x{height} pixels is shrunk to {tile} for the proposer, which was "
        f"trained on at most {trained}: small objects are lost; --model.learned.scale "
        f"{tile / trained:.2g} looks at it in tiles, at the size of training"
    )
