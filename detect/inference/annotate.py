"""Run a detector over many inputs; write annotated pictures and videos, and results as JSON."""

import importlib.util
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from backbones.common.errors import ImageError, ImageTooLargeError, UserError
from backbones.common.files import locked, make_folder
from backbones.common.images import read_image_size, write_image
from backbones.common.progress import TrainingProgress, track
from backbones.common.signals import StopSignals
from detect.blocks import PartsOfTensor
from detect.detector import Detector
from detect.inference.formats import Format
from detect.inference.geojson import write_geojson
from detect.inference.outputs import clear_earlier, numbered_folder
from detect.inference.results import Frame, Results, targets_of
from detect.media.crops import LONGEST_NAME, printable
from detect.media.drawing import draw_detections, draw_large
from detect.media.large import LargeImage
from detect.media.sources import Input, Source, read_images
from detect.media.video import VideoReader, VideoWriter
from detect.rcnn.postprocess import above_score

logger = logging.getLogger(__name__)

NEW_FOLDERS = Path("runs/infer")
"""Where runs write to that name no folder."""


@dataclass
class InferenceReport:
    """What `infer` did.

    Attributes:
        output: folder that was written to.
        images: number of pictures and video frames with detections made.
        objects: number of objects found, by class.
        errors: one line for each input that could not be read (to its end).
    """

    output: Path
    images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def count(self, found: dict[str, Tensor], class_names: Sequence[str]) -> None:
        """Count an image and what was found in it."""
        self.images += 1
        self.objects.update(class_names[label - 1] for label in found["labels"].tolist())

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count}" for name, count in self.objects.items() if count)
        return (
            f"images and frames: {self.images}, objects: {self.objects.total()}"
            f"{f' ({classes})' if classes else ''}, written to {self.output}"
        )


def infer(
    detector: Detector,
    source: Source,
    output: Path | None = None,
    *,
    score_thresh: float,
    save: Collection[Format] = (),
    pre_labels: bool = False,
    overwrite: bool = False,
    every: int = 1,
) -> InferenceReport:
    """Detect objects in every input and write what was found into the folder `output`.

    Writes an annotated picture `NAME.jpg` for each image, an annotated `NAME.mp4` for each video,
    `results.json` with the detections in COCO's results format, and `images.json` with `images`
    (id, file, size, annotated picture or video, and of a frame its number and time in seconds) and
    `categories`, to which the results refer, and the formats that `save` names. An input that
    cannot be read, or whose picture cannot be written, is reported and the rest is done. At every
    moment all of them hold what was done, and a video plays up to there.

    Ctrl-C and SIGTERM end it after the image that it is at; a second Ctrl-C ends the process.

    Of an image that is read part by part (see `detect.blocks`) a few blocks for each thread are in
    memory, and the picture is a smaller copy; of a GeoTIFF `NAME.geojson` has the boxes on the map.

    Args:
        detector: what to run.
        source: what to run it on.
        output: folder to write to, made where missing; None: a new one, `runs/infer` or that with
            a number behind it.
        score_thresh: detections below it are neither drawn nor written.
        save: further formats, see `Results`.
        pre_labels: likewise.
        overwrite: delete what an earlier run has left in the folder, which is refused otherwise.
        every: of so many frames of a video the first is looked at.

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
    output = numbered_folder(NEW_FOLDERS) if output is None else output
    targets = _targets(source, output)
    with StopSignals("image", exits=True) as stop, locked(make_folder(output)):
        written = [*targets.values(), *targets_of(output, save)]
        clear_earlier(output, written, overwrite=overwrite)
        report = InferenceReport(output, objects=Counter(dict.fromkeys(detector.class_names, 0)))
        names = (detector.class_names, detector.category_ids)
        with (
            _says_what_is_kept(report, output),
            Results(output, *names, save, pre_labels=pre_labels) as results,
        ):
            _infer(detector, source, targets, score_thresh, report, results, stop, every)
    return report


def _infer(
    detector: Detector,
    source: Source,
    targets: Mapping[Input, Path],
    score_thresh: float,
    report: InferenceReport,
    results: Results,
    stop: StopSignals,
    every: int,
) -> None:
    def annotated(
        images: Iterable[tuple[Frame, Tensor]], count: int | None = None
    ) -> Iterator[tuple[Frame, Tensor]]:
        for frame, image, found in detector.detect_named(images, count):
            found = above_score(found, score_thresh)
            picture = draw_detections(image, found, detector.class_names)
            try:
                results.add(PartsOfTensor(image), frame, targets[frame.file], found)
            except ImageError as error:
                _report_error(report, f"{frame.file}: {error}")
            report.count(found, detector.class_names)
            yield frame, picture

    large = [path for path in source.images if isinstance(path, Path) and _is_large(path, detector)]
    parts = set[Input](large)
    rest = [path for path in source.images if path not in parts]
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
                report.count(found, detector.class_names)
            except UserError as error:
                _report_error(report, str(error))
            progress.update(report.images + len(report.errors), 1, waited=None, notes="")
    for video in source.videos:
        if stop.received:
            break
        try:
            _annotate_video(video, targets[video], annotated, stop, every)
        except UserError as error:
            of_input = str(error).startswith(f"{video}: ")
            _report_error(report, str(error) if of_input else f"{video}: {error}")
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
    paths: Iterable[Input], report: InferenceReport, large: list[Path] | None
) -> Iterator[tuple[Frame, Tensor]]:
    """The images that can be read; the others go into the report, or to those that are too large to
    be read as a whole, where there is such a list."""
    for path, image in read_images(paths):
        if isinstance(image, ImageTooLargeError) and isinstance(path, Path) and large is not None:
            large.append(path)
        elif isinstance(image, ImageTooLargeError):
            _report_error(report, f"{image}, or set model.learned.scale: it is then read in parts")
        elif isinstance(image, ImageError):
            _report_error(report, str(image))
        else:
            yield Frame(path), image


def _annotate_large(
    path: Path, target: Path, detector: Detector, score_thresh: float, results: Results
) -> dict[str, Tensor]:
    """Annotate an image that is read part by part."""
    with LargeImage(path) as image:
        on_map = None if image.place is None else target.with_suffix(".geojson")
        if on_map is not None and os.path.lexists(on_map):  # those of an earlier run are deleted
            raise ImageError(f"{path}: {on_map} is there already, and infer did not write it")
        found = above_score(detector.detect_parts(image), score_thresh)
        results.add(image, Frame(path), target, found, on_map)
        write_image(target, draw_large(image, found, detector.class_names))
        if on_map is not None and image.place is not None:
            write_geojson(on_map, found, detector.class_names, image.place)
    return found


def _annotate_video(
    path: Input,
    target: Path,
    annotated: Callable[[Iterable[tuple[Frame, Tensor]]], Iterator[tuple[Frame, Tensor]]],
    stop: StopSignals,
    every: int,
) -> None:
    """Annotate frame by frame; a video that breaks off keeps the frames before the break."""
    reader = VideoReader(path, every=every)
    broken: UserError | None = None
    with VideoWriter(target, reader.fps / every, reader.size) as writer:

        def frames() -> Iterator[tuple[Frame, Tensor]]:
            for number, (image, time) in enumerate(reader.timed()):
                writer.check_size(image)
                yield Frame(path, number * every, time), image

        try:
            for frame, picture in track(
                annotated(frames()), -(-reader.num_frames // every) or None, target.name, "frames"
            ):
                writer.write(picture, frame.time)
                if stop.received:
                    break
        except UserError as error:
            broken = error
    if broken is not None:
        raise broken


def _report_error(report: InferenceReport, message: str) -> None:
    message = " ".join(message.split())  # servers and names of files have line ends
    logger.error(message)
    report.errors.append(message)


def _targets(source: Source, output: Path) -> dict[Input, Path]:
    """The file for each input, numbered where two inputs share a name, so that none is lost."""
    paths = [*source.images, *source.videos]
    inputs = {os.path.realpath(path) for path in paths if isinstance(path, Path)}
    videos = set(source.videos)
    targets: dict[Input, Path] = {}
    taken: set[str] = set()
    number = defaultdict[str, int](lambda: 1)
    for path in paths:
        suffix = ".mp4" if path in videos else ".jpg"
        stem = printable(os.fsencode(path.stem)[:LONGEST_NAME].decode("utf-8", "ignore"))
        stem = stem.lstrip(".") or "image"  # what a dot begins is hidden
        name = stem + suffix
        while name in taken:
            number[stem + suffix] += 1
            name = f"{stem}_{number[stem + suffix]}{suffix}"
        taken.add(name)
        target = output / name
        if os.path.realpath(target) in inputs:
            raise UserError(f"{target}: the result would overwrite this input: change the output")
        targets[path] = target
    return targets


@contextmanager
def _says_what_is_kept(report: InferenceReport, output: Path) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, how far the work has come."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        logger.warning("%s keeps what was found so far, images: %d", output, report.images)
        raise
