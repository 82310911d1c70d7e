"""A look at a dataset: its account in words and numbers, and pictures with their boxes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
from torch import Tensor

from backbones.common.errors import ImageError
from backbones.common.files import atomic_write
from backbones.common.images import open_image, write_image
from backbones.common.ranges import check_ranges
from detect.data import DetectionDataset
from detect.data.account import SIZES, Account, held_notes, log_account, take_account
from detect.data.open import (
    DatasetConfig,
    build_datasets,
    keep_out_of_data,
    resolve_data,
    split_names,
)
from detect.evaluation.page import PICTURE_SIDE, data_url, fill_page
from detect.evaluation.report_folder import data_folder
from detect.media.drawing import Caption, count_classes, draw_detections, sheet

SHEET_WIDTH = 1600
"""Pixels of the sheet, of some four pictures in a row."""

HIGHEST = 320
"""Pixels of a picture's height, in which pictures of either orientation make one row."""

LABELS, LABELLED = 12, 40.0
"""Labels stand at up to so many boxes of a picture, where half of these are longer than so many
pixels; the classes of others tell their colours alone, by the caption."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InspectConfig:
    """What to look at."""

    data: DatasetConfig = field(default_factory=DatasetConfig)
    """Images and boxes; `--data PATH` for short."""
    pictures: int = 24
    """Pictures on the sheet, of all splits together."""
    output: str = "runs/data"
    """Folder for data.html and sheet.jpg."""

    def __post_init__(self) -> None:
        check_ranges(self, "", {"[1, 1000]": "pictures"})


def inspect_data(config: InspectConfig) -> Account:
    """Log what the splits of a dataset hold, and write `data.html` and `sheet.jpg`.

    Raises:
        UserError: the data are not as the configuration says, or cannot be read; or the folder has
            such files of another program, or is the dataset's.
    """
    keep_out_of_data(config.output, config.data)
    with data_folder(config.output) as folder:
        return _inspect(config, folder)


def _inspect(config: InspectConfig, folder: Path) -> Account:
    data = resolve_data(config.data)
    names = split_names(data)
    with held_notes() as notes:
        parts = dict(zip(names, build_datasets(data, names), strict=True))
    account = take_account(parts, notes)
    log_account(account)
    pictures = _pictures(parts, config.pictures)
    (folder / "sheet.jpg").unlink(missing_ok=True)
    page = fill_page(
        "data.html.jinja",
        title=f"{Path(str(data.root)).name}: {', '.join(parts)}",
        root=data.root,
        account=account,
        sizes=SIZES,
        pictures=[
            (caption, data_url(picture, PICTURE_SIDE, PICTURE_SIDE))
            for caption, picture in pictures
        ],
    )
    with atomic_write(folder / "data.html", "w") as file:
        file.write(page)
    if pictures:
        captions, drawn = zip(*pictures, strict=True)
        write_image(folder / "sheet.jpg", sheet(drawn, SHEET_WIDTH, captions))
    return account


def _pictures(parts: Mapping[str, DetectionDataset], number: int) -> list[tuple[Caption, Tensor]]:
    """Captions and pictures with boxes, spread over each split; none without boxes while there are
    others."""
    shown = []
    for split, dataset in parts.items():
        owners = sorted(set(dataset.objects()[0].tolist())) or list(range(len(dataset)))
        count = min(len(owners), max(1, number // len(parts)))
        for place in torch.linspace(0, len(owners) - 1, count).round().int().tolist():
            sample = dataset.sample(owners[place])
            try:
                image, scale = _small(sample.path)
            except ImageError as error:
                logger.warning("not shown: %s", error)
                continue
            boxes = sample.boxes * scale
            sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
            labelled = 0 < len(boxes) <= LABELS and float(sides.median()) > LABELLED
            drawn = draw_detections(
                image,
                {"boxes": boxes, "labels": sample.labels},
                dataset.class_names,
                labelled=labelled,
            )
            title = f"{split}: " * (len(parts) > 1) + Path(sample.path).name
            # Bytes that are no text have no letters in a font either.
            title = title.encode("utf-8", "backslashreplace").decode()
            caption = Caption(title, count_classes(sample.labels, dataset.class_names))
            shown.append((caption, drawn))
    return shown


def _small(path: str) -> tuple[Tensor, float]:
    """An image no wider and higher than is shown, `uint8 [3, h, w]`, and its scale."""
    image = open_image(path)
    scale = min(1.0, PICTURE_SIDE / image.width, HIGHEST / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = image.decode(image.reduction(image.height, image.width, min(size)))
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(pixels).permute(2, 0, 1), scale
