"""Run a detector over many inputs; write annotated pictures and videos, and results as JSON."""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from backbones.common.errors import ImageError, ImageTooLargeError, UserError
from backbones.common.files import locked, make_folder
from backbones.common.images import read_image_size, write_image
from backbones.common.progress import TrainingProgress, track
from backbones.common.signals import StopSignals
from detect.detector import Detector
from detect.evaluation import coco_results
from detect.inference.geojson import write_geojson
from detect.inference.outputs import GrowingList, clear_earlier
from detect.media.drawing import draw_detections, draw_large
from detect.media.large import LargeImage
from detect.media.sources import Source, read_images
from detect.media.video import VideoReader, VideoWriter
from detect.rcnn.postprocess import above_score

logger = logging.getLogger(__name__)

LONGEST_NAME = 200
"""Bytes of a result's name without its suffix: file systems have room for 255."""


class Frame(NamedTuple):
    """A picture, or a frame of a video with its number and its time in seconds."""

    file: Path
    number: int | None = None
    time: float = 0.0


@dataclass
class InferenceReport:
    """What `infer` did.

    Attributes:
        images: number of pictures and video frames with detections made.
        detections: number of objects found.
        errors: one line for each input that could not be read (to its end).
    """

    images: int = 0
    detections: int = 0
    errors: list[str] = field(default_factory=list)


def infer(
    detector: Detector,
    source: Source,
    output: Path,
    *,
    score_thresh: float,
) -> InferenceReport:
    """Detect objects in every input and write what was found into the folder `output`.

    Writes an annotated picture `NAME.jpg` for each image, an annotated `NAME.mp4` for each video,
    `results.json` with the detections in COCO's results format, and `images.json` with `images`
    (id, file, size, annotated picture or video, and of a frame its number and time in seconds) and
    `categories`, to which the results refer. An input that cannot be read, or whose picture cannot
    be written, is reported and the rest is done. At every moment both JSON files hold what was
    done, and a video plays up to there. What an earlier run has left in the folder is deleted.

    Ctrl-C and SIGTERM end it after the image that it is at; a second Ctrl-C ends the process.

    Of an image that is read part by part (see `detect.blocks`) a few blocks for each thread are in
    memory, and the picture is a smaller copy; of a GeoTIFF `NAME.geojson` has the boxes on the map.

    Args:
        detector: what to run.
        source: what to run it on.
        output: folder to write to, made where missing.
        score_thresh: detections below it are neither drawn nor written.

    Raises:
        UserError: the detector has no proposer, `output` cannot be written to or another program
            writes there, or a result would overwrite an input or what `infer` did not write.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM came.
    """
    if detector.model.proposer is None:
        raise UserError(
            "this detector was trained on precomputed proposals and has no proposer of its own: "
            "evaluate it on its dataset, or train one with model.proposer learned or grid"
        )
    targets = _targets(source, output)
    with StopSignals("image", exits=True) as stop, locked(make_folder(output)):
        clear_earlier(output, targets.values())
        report = InferenceReport()
        with _says_what_is_kept(report, output):
            _infer(detector, source, output, targets, score_thresh, report, stop)
    return report


def _infer(
    detector: Detector,
    source: Source,
    output: Path,
    targets: Mapping[Path, Path],
    score_thresh: float,
    report: InferenceReport,
    stop: StopSignals,
) -> None:
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(detector.category_ids, detector.class_names, strict=True)
    ]
    tail = f'], "categories": {json.dumps(categories)}}}'
    with (
        GrowingList(output / "results.json", "[", "]") as found_list,
        GrowingList(output / "images.json", '{"images": [', tail) as image_list,
    ):
        results = _Results(detector, found_list, image_list)

        def annotated(
            images: Iterable[tuple[Frame, Tensor]], count: int | None = None
        ) -> Iterator[tuple[Frame, Tensor]]:
            for frame, image, found in detector.detect_named(images, count):
                found = above_score(found, score_thresh)
                picture = draw_detections(image, found, detector.class_names)
                results.add(image.shape[1:], frame, targets[frame.file], found)
                report.images += 1
                report.detections += len(found["boxes"])
                yield frame, picture

        large: list[Path] = []
        rest: list[Path] = []
        for path in source.images:
            (large if _is_large(path, detector) else rest).append(path)
        with TrainingProgress("images", len(source.images)) as progress:
            readable = _readable(rest, report, large if _reads_parts(detector) else None)
            for frame, picture in annotated(readable, len(rest)):
                try:
                    write_image(targets[frame.file], picture)
                except ImageError as error:
                    _report_error(report, f"{frame.file}: {error}")
                progress.update(report.images + len(report.errors), 1, waited=None, notes="")
                if stop.received:
                    break
            for path in large:
                if stop.received:
                    break
                try:
                    found = _annotate_large(path, targets[path], detector, score_thresh, results)
                    report.images += 1
                    report.detections += len(found["boxes"])
                except UserError as error:
                    _report_error(report, str(error))
                progress.update(report.images + len(report.errors), 1, waited=None, notes="")
        for path in source.videos:
            if stop.received:
                break
            try:
                _annotate_video(path, targets[path], annotated, stop)
            except UserError as error:
                of_input = str(error).startswith(f"{path}: ")
                _report_error(report, str(error) if of_input else f"{path}: {error}")
    if stop.received:
        stop.leave()


def _reads_parts(detector: Detector) -> bool:
    """Whether an image may be so large that it is read part by part."""
    return detector.is_large(2**15, 2**15)


def _is_large(path: Path, detector: Detector) -> bool:
    """Whether a TIFF is read part by part. What cannot be read is none; it is told later.

    Other formats are read as a whole, turned and in all their kinds, while they fit into memory.
    """
    if path.suffix.lower() not in (".tif", ".tiff") or not _reads_parts(detector):
        return False
    try:
        width, height = read_image_size(path)
    except ImageTooLargeError:
        return True
    except ImageError:
        return False
    return importlib.util.find_spec("rasterio") is not None and detector.is_large(height, width)


def _readable(
    paths: list[Path], report: InferenceReport, large: list[Path] | None
) -> Iterator[tuple[Frame, Tensor]]:
    """The images that can be read; the others go into the report, or to those that are too large to
    be read as a whole, where there is such a list."""
    for path, image in read_images(paths):
        if isinstance(image, ImageTooLargeError) and large is not None:
            large.append(path)
        elif isinstance(image, ImageTooLargeError):
            _report_error(report, f"{image}, or set model.learned.scale: it is then read in parts")
        elif isinstance(image, ImageError):
            _report_error(report, str(image))
        else:
            yield Frame(path), image


def _annotate_large(
    path: Path, target: Path, detector: Detector, score_thresh: float, results: "_Results"
) -> dict[str, Tensor]:
    """Annotate an image that is read part by part."""
    with LargeImage(path) as image:
        on_map = None if image.place is None else target.with_suffix(".geojson")
        if on_map is not None and os.path.lexists(on_map):  # those of an earlier run are deleted
            raise ImageError(f"{path}: {on_map} is there already, and infer did not write it")
        found = above_score(detector.detect_parts(image), score_thresh)
        results.add((image.height, image.width), Frame(path), target, found, on_map)
        write_image(target, draw_large(image, found, detector.class_names))
        if on_map is not None and image.place is not None:
            write_geojson(on_map, found, detector.class_names, image.place)
    return found


def _annotate_video(
    path: Path,
    target: Path,
    annotated: Callable[[Iterable[tuple[Frame, Tensor]]], Iterator[tuple[Frame, Tensor]]],
    stop: StopSignals,
) -> None:
    """Annotate frame by frame; a video that breaks off keeps the frames before the break."""
    reader = VideoReader(path)
    broken: UserError | None = None
    with VideoWriter(target, reader.fps, reader.size) as writer:

        def frames() -> Iterator[tuple[Frame, Tensor]]:
            for number, (image, time) in enumerate(reader.timed()):
                writer.check_size(image)
                yield Frame(path, number, time), image

        try:
            for frame, picture in track(
                annotated(frames()), reader.num_frames or None, path.name, "frames"
            ):
                writer.write(picture, frame.time)
                if stop.received:
                    break
        except UserError as error:
            broken = error
    if broken is not None:
        raise broken


def _report_error(report: InferenceReport, message: str) -> None:
    logger.error(message)
    report.errors.append(message)


def _targets(source: Source, output: Path) -> dict[Path, Path]:
    """The file for each input, numbered where two inputs share a name, so that none is lost."""
    paths = [*source.images, *source.videos]
    inputs = {os.path.realpath(path) for path in paths}
    targets: dict[Path, Path] = {}
    taken: set[str] = set()
    for path in paths:
        suffix = ".mp4" if path in source.videos else ".jpg"
        stem = os.fsencode(path.stem)[:LONGEST_NAME].decode("utf-8", "ignore")
        name, number = stem + suffix, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name)
        target = output / name
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target}: the result would overwrite this input: change the output")
        targets[path] = target
    return targets


class _Results:
    """Puts what is found in an image into `results.json` and `images.json`."""

    def __init__(self, detector: Detector, found: GrowingList, images: GrowingList) -> None:
        self._category_ids = detector.category_ids
        self._found, self._images = found, images
        self._count = 0

    def add(
        self,
        size: Sequence[int],
        frame: Frame,
        annotated: Path,
        found: dict[str, Tensor],
        on_map: Path | None = None,
    ) -> None:
        self._count += 1
        height, width = size
        entry = {"id": self._count, "file_name": str(frame.file), "height": height, "width": width}
        entry["annotated"] = annotated.name
        if frame.number is not None:
            entry |= {"frame": frame.number, "time": round(frame.time, 6)}
        if on_map is not None:
            entry["geojson"] = on_map.name
        # In this order: an image that is listed has all its results.
        self._found.add(coco_results(found, self._count, self._category_ids))
        self._images.add([entry])


@contextmanager
def _says_what_is_kept(report: InferenceReport, output: Path) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, how far the work has come."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        logger.warning("%s keeps what was found so far, images: %d", output, report.images)
        raise
