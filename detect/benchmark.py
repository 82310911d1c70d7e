"""What a detector costs: by stage, by the number of crops and images, and beside its accuracy."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from backbones.files import read_image
from backbones.timing import time_interleaved
from detect.detector import Detector
from detect.drawing import draw_detections
from detect.parallel import batch_size, in_threads, worker_count
from detect.postprocess import above_score
from detect.proposals import LearnedProposer, Proposals

NETWORK_STAGES = ("proposal network", "crop network")
STAGES = ("decode", "proposal network", "crops", "crop network", "rest", "draw")
"""In their order; `rest` is anchors, suppression and box arithmetic."""
STAGE_IMAGES = 200
"""Of which the stages are measured at most; all are in memory."""


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
    """Decoding, detecting and drawing in turns, which overlap in use; detecting in batches and
    threads as there.

    A stage of the detector takes the time that its threads spend in it, waiting for each other
    included, divided by how many there are.

    Args:
        detector: what to measure, with a proposer.
        paths: of the images, of which the first `STAGE_IMAGES` are taken.
        score_thresh: of the detections that are drawn.
    """
    paths = paths[:STAGE_IMAGES]
    model = detector.model
    clock = _Clock(detector.device)
    began = time.perf_counter()
    images = [read_image(path) for path in paths]
    decoded = time.perf_counter()
    workers = worker_count(detector.device, len(images))
    size = batch_size(workers, len(images))
    batches = [images[start : start + size] for start in range(0, len(images), size)]

    def work(batch: list[Tensor]) -> tuple[list[dict[str, Tensor]], int]:
        with clock.running("whole"):
            regions = detector.propose(batch)
            found = detector.detect(batch, regions)
        return found, sum(len(proposals.boxes) for proposals in regions)

    list(in_threads(work, batches[: 2 * workers], workers))  # what is made at the first calls
    clock.seconds.clear()
    with ExitStack() as stack:
        stack.enter_context(clock.timing(model, "crop", "crops"))
        for owner, method, stage in _networks(model):
            stack.enter_context(clock.timing(owner, method, stage))
        results = list(in_threads(work, batches, workers))
    drawing = time.perf_counter()
    found = [detections for batch, _ in results for detections in batch]
    for image, detections in zip(images, found, strict=True):
        shown = above_score(detections, score_thresh)
        draw_detections(image, shown, detector.class_names)
    drawn = time.perf_counter()
    inside = {stage: clock.seconds[stage] / workers for stage in ("crops", *NETWORK_STAGES)}
    rest = clock.seconds["whole"] / workers - sum(inside.values())
    seconds = inside | {"decode": decoded - began, "rest": rest, "draw": drawn - drawing}
    crops = sum(boxes for _, boxes in results) * model.config.crops_per_proposal
    return StageCosts({stage: seconds[stage] / len(paths) for stage in STAGES}, crops / len(paths))


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


class _Clock:
    """Seconds by stage, of all threads together."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._device = device
        self._adding = Lock()

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes."""
        began = self._now()
        yield
        taken = self._now() - began
        with self._adding:
            self.seconds[stage] += taken

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
