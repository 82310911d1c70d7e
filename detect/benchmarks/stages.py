"""What a detector costs: by stage, by the number of crops and images, and beside its accuracy."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbones.benchmarks.timing import time_interleaved
from backbones.common.images import read_image
from detect.detector import Detector
from detect.media.drawing import draw_detections
from detect.proposals import LearnedProposer, Proposals
from detect.rcnn.postprocess import above_score
from detect.streaming import (
    PIXELS_PER_BATCH,
    batch_size,
    busy_seconds,
    image_batches,
    in_threads,
    worker_count,
)

NETWORK_STAGES = ("proposal network", "crop network")
STAGES = ("decode", "proposal network", "crops", "crop network", "rest", "draw")
"""In their order; `rest` is anchors, suppression and box arithmetic."""
STAGE_IMAGES = 200
"""The stages are measured of no more; all are in memory."""


@dataclass(frozen=True)
class StageCosts:
    """Seconds an image, by stage, and crops an image."""

    seconds: dict[str, float]
    crops: float

    @property
    def network_share(self) -> float:
        """Of the detector's own time, without decoding and drawing."""
        own = sum(self.seconds[stage] for stage in STAGES if stage not in ("decode", "draw"))
        return sum(self.seconds[stage] for stage in NETWORK_STAGES) / own


def stage_costs(detector: Detector, paths: Sequence[Path], score_thresh: float) -> StageCosts:
    """Decoding, detecting and drawing in turns, which overlap in use.

    Detecting is in batches and threads as there. A stage counts for as much of its time as of the
    threads' time; what these wait for each other is in the stage that they are in. The first
    `STAGE_IMAGES` are taken, and detections with `score_thresh` drawn.
    """
    paths = paths[:STAGE_IMAGES]
    model = detector.model
    clock = _Clock(detector.device)
    began = time.perf_counter()
    images = [(None, read_image(path)) for path in paths]
    decoded = time.perf_counter()
    workers = worker_count(detector.device, len(images))
    size = batch_size(workers, len(images))
    batches = [
        [image for _, image in batch] for batch in image_batches(images, size, PIXELS_PER_BATCH)
    ]

    def work(batch: list[Tensor]) -> _Worked:
        clock.seconds.clear()
        started = time.perf_counter()
        with clock.running("whole"):
            regions = detector.propose(batch)
            found = detector.detect_tensors(batch, regions)
        boxes = sum(len(proposals.boxes) for proposals in regions)
        return _Worked(found, boxes, dict(clock.seconds), (started, time.perf_counter()))

    with ExitStack() as stack:
        stack.enter_context(clock.timing(model, "crop", "crops"))
        for owner, method, stage in _networks(model):
            stack.enter_context(clock.timing(owner, method, stage))
        # Before them, what is made at the first calls of each thread.
        worked = list(in_threads(work, [*batches[: 2 * workers], *batches], workers))
    worked = worked[-len(batches) :]
    drawing = time.perf_counter()
    found = [detections for batch in worked for detections in batch.found]
    for (_, image), detections in zip(images, found, strict=True):
        shown = above_score(detections, score_thresh)
        draw_detections(image, shown, detector.class_names)
    drawn = time.perf_counter()
    whole = busy_seconds(batch.span for batch in worked)
    factor = whole / sum(batch.seconds["whole"] for batch in worked)
    inside = {
        stage: factor * sum(batch.seconds.get(stage, 0.0) for batch in worked)
        for stage in ("crops", *NETWORK_STAGES)
    }
    rest = whole - sum(inside.values())
    seconds = inside | {"decode": decoded - began, "rest": rest, "draw": drawn - drawing}
    crops = sum(batch.boxes for batch in worked)
    return StageCosts({stage: seconds[stage] / len(paths) for stage in STAGES}, crops / len(paths))


class _Worked(NamedTuple):
    found: list[dict[str, Tensor]]
    boxes: int
    seconds: dict[str, float]
    span: tuple[float, float]


def crop_costs(
    detector: Detector, image: Tensor, counts: Sequence[int], repeats: int
) -> list[float]:
    """Median seconds for an image with so many proposals, without the proposer's own cost."""
    generator = torch.Generator().manual_seed(0)
    _, height, width = image.shape
    calls: dict[str, Callable[[], Any]] = {}
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) / 2
        boxes = torch.cat([corners, corners + torch.tensor([width, height]) / 4], dim=1)
        proposals = Proposals(boxes, torch.ones(count))
        calls[str(count)] = lambda proposals=proposals: detector(image, proposals)  # type: ignore[misc]
    return list(time_interleaved(calls, repeats, detector.device).values())


def image_costs(
    detector: Detector, images: Sequence[Tensor], counts: Sequence[int], repeats: int
) -> list[float]:
    """Median seconds for so many images at once, which are taken again where they are too few."""
    calls: dict[str, Callable[[], Any]] = {}
    for count in counts:
        batch = [images[index % len(images)] for index in range(count)]
        calls[str(count)] = lambda batch=batch: detector.detect(batch)  # type: ignore[misc]
    return list(time_interleaved(calls, repeats, detector.device).values())


def _networks(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    yield model.get_submodule("backbone"), "forward", "crop network"
    proposer = model.get_submodule("proposer")
    if isinstance(proposer, LearnedProposer):
        yield proposer.trunk, "forward_stages", "proposal network"
        yield proposer.pyramid, "forward", "proposal network"
        yield proposer.rpn.head, "forward", "proposal network"


class _Clock(threading.local):
    """Seconds by stage, of each thread for itself."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = self._now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - began

    @contextmanager
    def timing(self, owner: nn.Module, method: str, stage: str) -> Iterator[None]:
        """Add the time that calls of a method take while the block runs."""
        original = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.running(stage):
                return original(*args, **kwargs)

        setattr(owner, method, call)
        try:
            yield
        finally:
            delattr(owner, method)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
