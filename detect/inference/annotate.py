"""Run a detector over many inputs; write annotated pictures and videos, and results as JSON."""

import hashlib
import importlib.util
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from backbones.common import distributed
from backbones.common.errors import (
    DiskError,
    ImageError,
    ImageTooLargeError,
    OutputError,
    UserError,
)
from backbones.common.files import locked, make_folder, numbered_folder
from backbones.common.images import read_image_size, write_image
from backbones.common.progress import TrainingProgress, track
from backbones.common.signals import StopSignals
from detect.blocks import PartsOfTensor
from detect.detector import Detector
from detect.inference.formats import Format
from detect.inference.geojson import write_geojson
from detect.inference.outputs import (
    IMAGES,
    PARTS,
    annotated_files,
    check_earlier,
    check_foreign,
    clear_earlier,
    remove_half_written,
)
from detect.inference.parts import join_parts, part_folder, take_up
from detect.inference.report import InferenceReport
from detect.inference.results import Frame, Results, targets_of
from detect.media.drawing import draw_detections, draw_large
from detect.media.large import LargeImage
from detect.media.sources import Input, Source, read_images
from detect.media.video import VideoReader, VideoWriter
from detect.rcnn.postprocess import above_score

logger = logging.getLogger(__name__)

NEW_FOLDERS = Path("runs/infer")
"""Where runs write to that name no folder."""


def check_output(
    source: Source,
    output: Path,
    save: Collection[Format] = (),
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Raise `UserError` where `infer` would refuse to write into a folder, before the weights are
    there; the folder is made where it is missing."""
    with locked(make_folder(output)):  # what another program is writing is no earlier run's
        written = _written(annotated_files(source, output), output, save, resume=resume)
        if resume:
            check_foreign(output, written)
        else:
            check_earlier(output, written, overwrite=overwrite)


def _written(
    targets: Mapping[Input, Path], folder: Path, save: Collection[Format], *, resume: bool
) -> list[Path]:
    """What may be written into a folder beside the two lists: files, and folders."""
    in_parts = resume or distributed.world_size() > 1
    return [*targets.values(), *targets_of(folder, save), *([folder / PARTS] if in_parts else [])]


def infer(
    detector: Detector,
    source: Source,
    output: Path | None = None,
    *,
    score_thresh: float,
    save: Collection[Format] = (),
    pre_labels: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    every: int = 1,
) -> InferenceReport:
    """Detect objects in every input and write what was found into the folder `output`.

    Writes an annotated picture `NAME.jpg` for each image, an annotated `NAME.mp4` for each video,
    `results.json` with the detections in COCO's results format, and `images.json` with `images`
    (id, file, size, annotated picture or video, and of a frame its number and time in seconds) and
    `categories`, to which the results refer, and the formats that `save` names. An input that
    cannot be read, or whose picture no JPEG can hold, is reported and the rest is done. At every
    moment all of them hold what was done, and a video plays up to there.

    Ctrl-C and SIGTERM end it after the image that it is at; a second Ctrl-C ends the process.

    Of an image that is read part by part (see `detect.blocks`) a few blocks for each thread are in
    memory, and the picture is a smaller copy; of a GeoTIFF `NAME.geojson` has the boxes on the map.

    Several processes (see `distributed.processes`) each take every n-th picture and every n-th
    video. What they list is joined at the end, see `detect.inference.parts`, as it is when a run is
    resumed. All get the report.

    Args:
        detector: what to run.
        source: what to run it on.
        output: folder to write to, made where missing; None: a new one, `runs/infer` or that with
            a number behind it.
        score_thresh: detections below it are neither drawn nor written.
        save: further formats, see `Results`.
        pre_labels: likewise.
        overwrite: delete what an earlier run has left in the folder, which is refused otherwise.
        resume: or keep it, and do what is not done.
        every: of so many frames of a video the first is looked at.

    Raises:
        UserError: the detector has no proposer, `output` cannot be written to or another program
            writes there, or a result would overwrite an input or what `infer` did not write.
        DiskError: the disk is full; what is there is whole.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM came.
    """
    if detector.model.proposer is None:
        raise UserError(
            "this detector was trained on precomputed proposals and has no proposer of its own: "
            "evaluate it on its dataset, or train one with model.proposer learned or grid"
        )
    folder = output or distributed.call_on_main(lambda: numbered_folder(NEW_FOLDERS))
    targets = annotated_files(source, folder)
    files = (path for path in targets if isinstance(path, Path))
    renamed = [path for path in files if path.stem != targets[path].stem]
    if renamed and distributed.is_main():
        logger.warning(
            "%s: inputs whose results are named otherwise, as another has the name or no file can, "
            "see %s: %d, first %s: %s",
            *(folder, IMAGES, len(renamed), renamed[0], targets[renamed[0]].name),
        )
    in_parts = resume or distributed.world_size() > 1
    trained = json.dumps(detector.metadata, sort_keys=True)
    wanted = detector.model.wanted
    settings: dict[str, Any] = {
        "detector": hashlib.sha256(trained.encode()).hexdigest(),
        "classes": None if wanted is None else wanted.tolist(),
        **{"score_thresh": score_thresh, "save": sorted(save), "pre_labels": pre_labels},
        "every": every,
    }
    if len({*distributed.gather(detector.metadata.get("digest"))}) > 1:
        raise UserError("the processes have read different weights: give all the same file")
    names = (detector.class_names, detector.category_ids)
    new_results = partial(Results, folder, *names, save, pre_labels=pre_labels, settings=settings)
    with StopSignals("image", exits=True) as stop, ExitStack() as held:

        def begin() -> tuple[int, set[str]]:
            held.enter_context(locked(make_folder(folder)))
            written = _written(targets, folder, save, resume=resume)
            if resume and (earlier := check_foreign(folder, written)):
                remove_half_written(folder, {*earlier, *(path.name for path in written)})
                return take_up(folder, targets, settings)
            clear_earlier(folder, written, overwrite=overwrite)
            return 0, set()

        first, done = distributed.call_on_main(begin)
        report = InferenceReport(folder, objects=Counter(dict.fromkeys(detector.class_names, 0)))
        lists = part_folder(folder, first + distributed.rank()) if in_parts else None
        with _says_what_is_kept(report, stop), new_results(lists=lists) as results:
            own = _own_part(source, {path for path in targets if targets[path].name in done})
            _infer(detector, own, targets, score_thresh, report, results, stop, every)
            if distributed.world_size() > 1:
                logger.info("its own part is done, waiting for the other processes")
            faults = distributed.gather((report.errors, report.unwritten))
        if in_parts:
            columns = map(chain.from_iterable, zip(*faults, strict=True))
            report.errors, report.unwritten = map(list, columns)
            report.images, found = distributed.call_on_main(
                lambda: join_parts(folder, new_results, targets, first)
            )
            report.objects = Counter({name: found[key] for name, key in zip(*names, strict=True)})
    return report


def _own_part(source: Source, done: Collection[Input]) -> Source:
    """Of the inputs that are not done, those of this process."""
    rank, count = distributed.rank(), distributed.world_size()
    images, videos = (
        [path for path in paths if path not in done] for paths in (source.images, source.videos)
    )
    if count > 1 and videos:
        logger.info("videos and streams: %d, each is for one of the processes", len(videos))
    return Source(images[rank::count], videos[rank::count])


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
            with _reported(report, results, frame.file, targets[frame.file]):
                results.add(PartsOfTensor(image), frame, targets[frame.file], found)
            report.count(found, detector.class_names)
            yield frame, picture

    large = [path for path in source.images if isinstance(path, Path) and _is_large(path, detector)]
    parts = set[Input](large)
    rest = [path for path in source.images if path not in parts]
    with TrainingProgress("images", len(source.images)) as progress:
        readable = _readable(rest, report, large if _reads_parts(detector) else None)
        for frame, picture in annotated(readable, len(rest)):
            with _reported(report, results, frame.file, targets[frame.file]):
                write_image(targets[frame.file], picture)
                results.mark_whole()
            progress.update(report.images + len(report.errors), 1, waited=None, notes="")
            if stop.received:
                break
        for path in large:
            if stop.received:
                break
            with _reported(report, results, path, targets[path]):
                found = _annotate_large(path, targets[path], detector, score_thresh, results)
                results.mark_whole()
                report.count(found, detector.class_names)
            progress.update(report.images + len(report.errors), 1, waited=None, notes="")
    for video in source.videos:
        if stop.received:
            break
        with _reported(report, results, video, targets[video]):
            _annotate_video(video, targets[video], annotated, stop, every)
            if not stop.received:
                results.mark_whole()
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
            hint = f"{image}, or set model.learned.scale: it is then read in parts"
            _report_error(report.errors, hint)
        elif isinstance(image, ImageError):
            _report_error(report.errors, str(image))
        else:
            yield Frame(path), image


def _annotate_large(
    path: Path, target: Path, detector: Detector, score_thresh: float, results: Results
) -> dict[str, Tensor]:
    """Annotate an image that is read part by part."""
    with LargeImage(path) as image:
        on_map = None if image.place is None else target.with_suffix(".geojson")
        if on_map is not None and os.path.lexists(on_map):  # those of an earlier run are deleted
            raise OutputError(f"{on_map}: is there already, and infer did not write it")
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


@contextmanager
def _reported(
    report: InferenceReport, results: Results, path: Input, target: Path
) -> Iterator[None]:
    """What is wrong with an input, or with what would be written of it, becomes a line of the
    report; a disk that takes no more ends it all."""
    try:
        yield
    except DiskError:
        raise
    except UserError as error:
        text, lines = str(error), report.errors
        if isinstance(error, OutputError):
            text, lines = f"{text} (of {path})", report.unwritten
        elif not text.startswith(f"{path}: "):
            text = f"{path}: {text}"
        _report_error(lines, text)
        if path.suffix:  # not of a live stream, which has gone on since
            results.mark_failed([target.name])


def _report_error(lines: list[str], message: str) -> None:
    message = " ".join(message.split())  # servers and names of files have line ends
    logger.error(message)
    lines.append(message)


@contextmanager
def _says_what_is_kept(report: InferenceReport, stop: StopSignals) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, which also end the wait for others, or where the disk takes no more:
    how far the work has come."""
    try:
        try:
            yield
        except RuntimeError:
            if stop.received:
                stop.leave()
            raise
    except (KeyboardInterrupt, SystemExit, DiskError):
        whose = " of this process" if distributed.world_size() > 1 else ""
        logger.warning(
            "%s keeps what was found so far, images%s: %d; --resume goes on with it",
            *(report.output, whose, report.images),
        )
        raise
