"""What is found in an image, in the words of other programs: VOC's XML, YOLO's text, CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from xml.sax.saxutils import escape

from torch import Tensor

from detect.data.voc import boxes_to_voc
from detect.media.crops import printable

Format = Literal["yolo", "voc", "csv", "crops"]

CSV_HEADER = ("file", "frame", "time", "class", "score", "x1", "y1", "x2", "y2")


def yolo_rows(found: Mapping[str, Tensor], size: Sequence[int], *, with_scores: bool) -> str:
    """A row an object: `class x y width height` in fractions of the image, centre first.

    Args:
        found: `boxes` `[N, 4]` xyxy in pixels, `labels` `[N]` in `1..K`, written from 0, `scores`.
        size: height and width of the image.
        with_scores: a sixth number, which data sets for training have not.
    """
    height, width = size
    rows = []
    for (x1, y1, x2, y2), label, score in _objects(found):
        numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
        numbers += [(x2 - x1) / width, (y2 - y1) / height, *([score] if with_scores else [])]
        rows.append(" ".join([str(label - 1), *(f"{number:.6f}" for number in numbers)]) + "\n")
    return "".join(rows)


def voc_annotation(
    found: Mapping[str, Tensor],
    size: Sequence[int],
    file_name: str,
    class_names: Sequence[str],
    *,
    with_scores: bool,
) -> str:
    """An `<annotation>`, boxes counting pixels from 1 as VOC's do, in hundredths of one.

    Args:
        found: as of `yolo_rows`.
        size: likewise.
        file_name: of the image.
        class_names: of labels `1..K`.
        with_scores: a `<score>` for each object, which VOC itself does not know.
    """
    height, width = size
    lines = [
        f"<annotation>\n  <filename>{escape(printable(file_name))}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for box, label, score in _objects({**found, "boxes": boxes_to_voc(found["boxes"])}):
        name = escape(printable(class_names[label - 1]))
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        corners = "".join(f"<{side}>{value:.2f}</{side}>" for side, value in sides)
        certain = f"<score>{score:.6f}</score>" if with_scores else ""
        lines.append(
            f"  <object><name>{name}</name><difficult>0</difficult>{certain}"
            f"<bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>\n"])


def csv_rows(
    results: Iterable[Mapping[str, Any]], image: Mapping[str, Any], names: Mapping[int, str]
) -> str:
    """A row an object, in the columns of `CSV_HEADER`; of a picture, frame and time are empty.

    Args:
        results: of one image, in COCO's format.
        image: its entry in `images.json`.
        names: of the classes by category id.
    """
    moment = (image["frame"], f"{image['time']:.6f}") if "frame" in image else ("", "")
    rows = []
    for row in results:
        x, y, width, height = row["bbox"]
        corners = (f"{value:.2f}" for value in (x, y, x + width, y + height))
        name, score = _no_formula(names[row["category_id"]]), f"{row['score']:.6f}"
        rows.append((_no_formula(image["file_name"]), *moment, name, score, *corners))
    return csv_lines(rows)


def _no_formula(text: str) -> str:
    """Text with an apostrophe before it where a spreadsheet would compute it: it may be hostile."""
    return f"'{text}" if text[:1] in {*"=+-@\t\r"} and len(text) > 1 else text


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Values as lines of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _objects(found: Mapping[str, Tensor]) -> Iterable[tuple[list[float], int, float]]:
    columns = (found["boxes"].double().tolist(), found["labels"].tolist())
    return zip(*columns, found["scores"].tolist(), strict=True)
