"""All that `infer` writes about what it finds, beside pictures and videos."""

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from torch import Tensor

from backbones.common.errors import ImageError
from backbones.common.files import atomic_write
from backbones.common.images import write_image
from backbones.common.regular_files import open_file
from detect.blocks import Parts, PartsOfTensor
from detect.data.labelmap import VOC_CLASS_FILE
from detect.evaluation.results import coco_results
from detect.inference.corrections import digest
from detect.inference.formats import (
    CSV_HEADER,
    Format,
    csv_lines,
    csv_rows,
    voc_annotation,
    yolo_rows,
)
from detect.inference.outputs import CSV, IMAGES, RESULTS, GrowingFile, GrowingList
from detect.media.addresses import Address
from detect.media.crops import class_folders, cut_crops, printable
from detect.media.sources import Input

_YOLO, _VOC_SPLIT = "yolo/data.yaml", "voc/ImageSets/Main/train.txt"
_VOC_CLASSES = f"voc/{VOC_CLASS_FILE}"


class Frame(NamedTuple):
    """A picture, or a frame of a video with its number and its time in seconds."""

    file: Input
    number: int | None = None
    time: float = 0.0


class Results:
    """Writes what is found in an image into files, which are whole at every moment.

    `results.json` and `images.json` always, and what `save` names. A context manager.

    Args:
        output: folder to write to.
        class_names: of labels `1..K`.
        category_ids: of labels `1..K`, for COCO's format.
        save: further formats.
        pre_labels: `yolo` and `voc` become data sets to correct and train on: images beside the
            labels, which have no scores.
        settings: what another run must have alike to go on with this one; values of JSON.
        lists: folder for what is no file of one image; None: `output`.

    Attributes:
        files: names of those in `lists`, the list of images first.

    Raises:
        UserError: in what follows, the disk refuses it.
    """

    def __init__(
        self,
        output: Path,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        save: Collection[Format] = (),
        *,
        pre_labels: bool = False,
        settings: Mapping[str, Any] | None = None,
        lists: Path | None = None,
    ) -> None:
        self._output, self._save, self._pre_labels = output, save, pre_labels
        self._class_names, self._category_ids = class_names, category_ids
        self._names = dict(zip(category_ids, class_names, strict=True))
        self._folders = class_folders(class_names)
        self._count = 0
        lists = output if lists is None else lists
        categories = json.dumps([{"id": key, "name": name} for key, name in self._names.items()])
        shared = [CSV] if "csv" in save else []
        shared += [_VOC_SPLIT] if "voc" in save and pre_labels else []
        self.files = [IMAGES, RESULTS, *shared]
        texts = {}
        if _VOC_SPLIT in shared:
            texts[_VOC_CLASSES] = "".join(f"{printable(name)}:::\n" for name in class_names)
        if "yolo" in save:
            split = {"train": "images"} if pre_labels else {}
            classes = {**split, "names": dict(enumerate(class_names))}
            texts[_YOLO] = yaml.safe_dump(classes, sort_keys=False, allow_unicode=True)
        shared += texts
        with ExitStack() as stack:
            # First of all, as it says which files an interrupted run leaves.
            head = f'{{"files": {json.dumps(shared)}, "texts": {json.dumps(_digests(texts))}, '
            head += f'"settings": {json.dumps(settings or {})}, "images": ['
            self._end, self._failed = f', "categories": {categories}}}', list[str]()
            self._lists = dict[str, GrowingFile]()
            self._last_is_whole, self._lists_agree = False, True
            images = GrowingList(lists / IMAGES, head, self._tail())
            self._images = stack.enter_context(images)
            self._found = stack.enter_context(GrowingList(lists / RESULTS, "[", "]"))
            if CSV in shared:
                self._csv = GrowingFile(lists / CSV, csv_lines([CSV_HEADER]))
                self._lists[CSV] = stack.enter_context(self._csv)
            if _VOC_SPLIT in shared:
                self._split = GrowingFile(lists / _VOC_SPLIT)
                self._lists[_VOC_SPLIT] = stack.enter_context(self._split)
            for path, text in texts.items():
                if not (output / path).exists():  # somebody may have added classes since
                    _write_text(output / path, text)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self._images.append("", self._tail())

    def add(
        self,
        image: Parts,
        frame: Frame,
        annotated: Path,
        found: dict[str, Tensor],
        on_map: Path | None = None,
    ) -> None:
        """Write what was found in one image.

        Args:
            image: that it was found in.
            frame: which that is.
            annotated: picture or video that it is drawn in.
            found: `boxes` `[N, 4]` xyxy in pixels, `labels` `[N]` in `1..K`, `scores` `[N]`.
            on_map: GeoJSON of it, where there is one.

        Raises:
            ImageError: an image cannot be copied.
            OutputError: a crop has a size that JPEG has not.
            DiskError: the disk refuses it.
        """
        size = {"height": image.height, "width": image.width}
        entry: dict[str, Any] = {"id": 0, "file_name": name_of(frame.file), **size}
        entry["annotated"] = annotated.name
        if frame.number is not None:
            entry |= {"frame": frame.number, "time": round(frame.time, 6)}
        if not isinstance(image, PartsOfTensor):
            entry["in_blocks"] = True
        if on_map is not None:
            entry["geojson"] = on_map.name
        stem, suffix = _stem(entry), ".png"
        if frame.number is None and isinstance(frame.file, Path):
            suffix = frame.file.suffix
        texts = self._texts(stem, suffix, found, (image.height, image.width))
        folders = {"yolo": "yolo/images", "voc": "voc/JPEGImages"} if self._pre_labels else {}
        copies = [f"{folders[key]}/{stem}{suffix}" for key in folders if key in self._save]
        classes = [self._folders[label - 1] for label in found["labels"].tolist()]
        crops = [f"crops/{own}/{stem}_{number}.jpg" for number, own in enumerate(classes)]
        crops = crops if "crops" in self._save else []
        if files := [*texts, *copies, *crops]:
            entry["files"] = files
        if texts:
            entry["texts"] = _digests(texts)
        self._list(entry, coco_results(found, 0, self._category_ids))
        # Labels before images: one without a label has no objects.
        for path, text in texts.items():
            _write_text(self._output / path, text)
        for path in copies:
            _copy(image, frame, self._output / path)
        if "voc" in self._save and self._pre_labels:
            self._split.append(f"{stem}\n")
        for path, crop in zip(crops, cut_crops(image, found["boxes"]), strict=False):
            write_image(self._output / path, crop)
        self._lists_agree = True

    def mark_failed(self, annotated: Sequence[str]) -> None:
        """Tell of annotated pictures and videos that a run that goes on is to try them again."""
        self._failed += [name for name in annotated if name not in self._failed]
        self._images.append("", self._tail())

    def mark_whole(self) -> None:
        """Tell that all is written of the last image or video, so that none does it again."""
        self._last_is_whole = True
        self._images.append("", self._tail())

    def add_listed(self, entry: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
        """List anew what other lists have of an image: its entry, and its rows of results."""
        self._list(entry, results)
        if _VOC_SPLIT in self.files:
            self._split.append(f"{_stem(entry)}\n")
        self._lists_agree = True

    def _tail(self) -> str:
        """What `images.json` ends with; never shorter than before, see `GrowingFile`."""
        failed = f', "failed": {json.dumps(self._failed)}' if self._failed else ""
        lists = json.dumps({path: file.digest for path, file in self._lists.items()})
        whole, agree = (f"{json.dumps(one):5}" for one in (self._last_is_whole, self._lists_agree))
        of_lists = f'"lists_agree": {agree}, "lists": {lists}'
        return f'], "last_is_whole": {whole}, {of_lists}{failed}{self._end}'

    def _list(self, entry: dict[str, Any], results: Sequence[dict[str, Any]]) -> None:
        self._count += 1
        # Until all is written the lists are not those that their digests here tell of.
        self._lists_agree = not self._lists
        self._images.append("", self._tail())
        if CSV in self.files:
            self._csv.append(csv_rows(results, entry, self._names))
        # In this order: an image that is listed has all its results, and no file can be left that
        # is not listed.
        self._found.add(row | {"image_id": self._count} for row in results)
        listed = entry | {"id": self._count, "objects": len(results)}
        self._last_is_whole = False
        self._images.add([listed], self._tail())

    def _texts(
        self, stem: str, suffix: str, found: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, str]:
        """What the label files of an image hold, by their paths."""
        texts, with_scores = {}, not self._pre_labels
        if "yolo" in self._save:
            texts[f"yolo/labels/{stem}.txt"] = yolo_rows(found, size, with_scores=with_scores)
        if "voc" in self._save:
            name = Path(stem).name + suffix
            texts[f"voc/Annotations/{stem}.xml"] = voc_annotation(
                *(found, size, name, self._class_names), with_scores=with_scores
            )
        return texts


def name_of(file: Input) -> str:
    """As lists have it: names of files may hold bytes that are no text, and addresses secrets."""
    name = file.listed if isinstance(file, Address) else file
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _stem(entry: Mapping[str, Any]) -> str:
    """What the files of an image are called, without their suffixes."""
    annotated = str(entry["annotated"])
    return f"{annotated}/{entry['frame']:06d}" if "frame" in entry else Path(annotated).stem


def targets_of(output: Path, save: Collection[Format]) -> list[Path]:
    """What `Results` may write into the folder, beside its two lists: files, and folders."""
    return [output / (CSV if key == "csv" else key) for key in save]


def _digests(texts: Mapping[str, str]) -> dict[str, str]:
    return {path: digest(text.encode(errors="backslashreplace")) for path, text in texts.items()}


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(text)


def _copy(image: Parts, frame: Frame, path: Path) -> None:
    """The file of a picture as it is; what is no file as its pixels."""
    if frame.number is not None or isinstance(frame.file, Address):
        size = (image.height, image.width)
        write_image(path, image.read((0, 0, image.width, image.height), size))
        return
    try:
        source = open_file(frame.file)
    except OSError as error:
        raise ImageError(f"{frame.file}: cannot copy image: {error.strerror}") from error
    with source, atomic_write(path) as file:
        shutil.copyfileobj(source, file)
