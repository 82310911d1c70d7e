"""What a detector costs: by stage, by the number of crops and images, and beside its accuracy."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.files import read_image
from backbones.timing import time_interleaved
from detect.detector import Detector
from detect.drawing import draw_detections
from detect.pipeline import IMAGES_PER_BATCH, read_batches
from detect.postprocess import above_score
from detect.proposals import LearnedProposer, Proposals

NETWORK_STAGES = ("proposal network", "crop network")
STAGES = ("decode", "proposal network", "crops", "crop network", "rest", "draw")
"""In their order; `rest` is anchors, suppression and box arithmetic."""


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
    """One stage after the other, in batches as in use; what overlaps there is in turns here.

    Args:
        detector: what to measure, with a proposer.
        paths: of the images.
        score_thresh: of the detections that are drawn.
    """
    inside = dict.fromkeys(("crops", *NETWORK_STAGES), 0.0)
    decode, whole, draw, crops = 0.0, 0.0, 0.0, 0
    model = detector.model
    detector.detect([read_image(paths[0])] * IMAGES_PER_BATCH)  # what is made at the first call
    with ExitStack() as stack:
        stack.enter_context(_timed(model, "crop", inside, "crops", detector.device))
        for owner, method, stage in _networks(model):
            stack.enter_context(_timed(owner, method, inside, stage, detector.device))
        for start in range(0, len(paths), IMAGES_PER_BATCH):
            began = time.perf_counter()
            images = [read_image(path) for path in paths[start : start + IMAGES_PER_BATCH]]
            read = time.perf_counter()
            regions = detector.propose(images)
            found = detector.detect(images, regions)
            detected = time.perf_counter()
            for image, detections in zip(images, found, strict=True):
                shown = above_score(detections, score_thresh)
                draw_detections(image, shown, detector.class_names)
            decode, whole = decode + read - began, whole + detected - read
            draw += time.perf_counter() - detected
            boxes = sum(len(proposals.boxes) for proposals in regions)
            crops += boxes * model.config.crops_per_proposal
    rest = whole - sum(inside.values())
    seconds = inside | {"decode": decode, "rest": rest, "draw": draw}
    return StageCosts({stage: seconds[stage] / len(paths) for stage in STAGES}, crops / len(paths))


def detect_files(detector: Detector, paths: Iterable[Path]) -> Iterator[dict[str, Tensor]]:
    """Detections of image files, which are read while the detector is at work, as in `infer`."""
    images = ((path, read_image(path)) for path in paths)
    for batch in read_batches(images):
        yield from detector.detect([image for _, image in batch])


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


@contextmanager
def _timed(
    owner: nn.Module, method: str, clock: dict[str, float], stage: str, device: torch.device
) -> Iterator[None]:
    """Add the time of a method's calls to a stage of the clock."""
    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        result = original(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock[stage] += time.perf_counter() - began
        return result

    setattr(owner, method, call)
    try:
        yield
    finally:
        delattr(owner, method)
