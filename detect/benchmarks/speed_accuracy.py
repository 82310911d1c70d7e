"""Accuracy against speed of several detectors and settings, an Ultralytics model beside them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from backbones.benchmarks.timing import describe_machine, time_interleaved
from backbones.common.device import resolve_device
from backbones.common.errors import MissingPackageError, UserError
from backbones.common.files import atomic_write, make_folder, write_json
from backbones.common.plots import literal, new_plot, save_plot
from backbones.common.ranges import check_ranges
from detect.benchmarks.stages import STAGES, crop_costs, image_costs, stage_costs
from detect.checkpoint import load_detector
from detect.data.open import DatasetConfig, build_dataset, match_classes
from detect.deployment.detector import deploy_detector
from detect.detector import Detector
from detect.evaluation import evaluate_coco
from detect.inference.config import DeploymentConfig, check_calibration_split
from detect.inference.score import calibration_images, detect_dataset
from detect.streaming import IMAGES_PER_BATCH

CROP_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
IMAGE_COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class DetectorPoint(DeploymentConfig):
    """A detector with its settings."""

    name: str
    """What the point is called in table and plot."""
    weights: str
    """Detector checkpoint (.safetensors), or a run folder."""


@dataclass(frozen=True)
class PeerPoint:
    """A model that Ultralytics runs (its package must be installed)."""

    name: str
    """What its point is called in table and plot."""
    weights: str
    """Model, a file or name that `ultralytics.YOLO` takes; a .yaml has random weights."""
    num_classes: int | None = None
    """Classes that a .yaml gets a head for; null for the number in the file."""
    image_size: int = 640
    """Longer side in pixels that images are resized to."""
    AP: float | None = None
    """Average precision of this model on the same images, measured elsewhere; null leaves it out of
    the plot."""


@dataclass(frozen=True)
class SpeedAccuracyConfig:
    """What to measure on which images."""

    points: tuple[DetectorPoint, ...]
    """Detectors that are measured; the cost of stages and crops is measured of the first."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    """Images and boxes that detections are held against."""
    split: str = "val"
    """Part of the dataset that is used."""
    calibration_split: str | None = None
    """Split of which some images set the ranges of points in `int8`; not the one that is scored."""
    peers: tuple[PeerPoint, ...] = ()
    """Models of others that are timed in the same run."""
    repeats: int = 5
    """Passes over the images with each detector and peer, in turns; the median counts."""
    score_thresh: float = 0.5
    """Score from which detections are drawn, where the cost of drawing is measured."""
    output: str = "runs/speed_accuracy"
    """Folder for speed_accuracy.json, speed_accuracy.md, speed_accuracy.png and cost.png."""
    device: str = "auto"
    """Device to compute on: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

    def __post_init__(self) -> None:
        names = [point.name for point in self.points] + [peer.name for peer in self.peers]
        if not self.points or len(set(names)) < len(names):
            raise UserError(f"points and peers must have different names, at least one: {names}")
        check_ranges(self, "", {"[0, 1]": "score_thresh", "[1, inf)": "repeats"})
        is_int8 = any(point.precision == "int8" for point in self.points)
        check_calibration_split(self.split, self.calibration_split, is_int8=is_int8)
        for peer in self.peers:
            if peer.num_classes is not None and not peer.weights.endswith(".yaml"):
                raise UserError(f"num_classes of {peer.name} is for a .yaml: remove it")


def measure_speed_accuracy(config: SpeedAccuracyConfig) -> str:
    """Measure and draw; leaves what `SpeedAccuracyConfig.output` says. The table, as Markdown.

    Images per second are from files to detections, with decoding, by `Detector.stream`, and beside
    it by `Detector.detect`, which reads, then detects, batch after batch, as Ultralytics does.

    Raises:
        UserError: a checkpoint, dataset or device is not as the config says.
        MissingPackageError: peers without Ultralytics.
    """
    folder = make_folder(config.output)
    dataset = build_dataset(config.data, config.split)
    paths = [Path(dataset.sample(index).path) for index in range(len(dataset))]
    # First what can fail.
    # Ultralytics takes a list of files for one batch, and a file with their names for as many as
    # `batch` says.
    listed = folder / "peer_images.txt"
    if config.peers:
        with atomic_write(listed, "w") as file:
            file.write("\n".join(str(path.resolve()) for path in paths))
    peers = {peer.name: _peer(peer, listed, config.device) for peer in config.peers}
    detectors = {point.name: _load(point, config) for point in config.points}
    matched = {
        name: match_classes(detector.class_names, detector.category_ids, dataset, config.split)
        for name, detector in detectors.items()
    }
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, detector in detectors.items():
        own = matched[name]
        scores = evaluate_coco(own, detect_dataset(detector, own).detections)
        costs = stage_costs(detector, paths, config.score_thresh)
        rows[name] = {
            "AP": scores["AP"],
            "AP50": scores["AP50"],
            "crops": costs.crops,
            "network_share": costs.network_share,
            "stages": costs.seconds,
        }
        calls[name] = lambda detector=detector: list(detector.stream(paths))  # type: ignore[misc]
        calls[_in_turns(name)] = lambda detector=detector: detect_in_turns(detector, paths)  # type: ignore[misc]
    for peer in config.peers:
        calls[peer.name] = peers[peer.name]
        rows[peer.name] = {"AP": peer.AP, "peer": True}
    first = next(iter(detectors.values()))
    seconds = time_interleaved(calls, config.repeats, first.device)
    for name, row in rows.items():
        row["images_per_second"] = len(paths) / seconds[name]
        if not row.get("peer"):
            row["images_per_second_in_turns"] = len(paths) / seconds[_in_turns(name)]
    images = [dataset.load_image(index) for index in range(min(8, len(dataset)))]
    cost = {
        "crops": dict(
            zip(CROP_COUNTS, crop_costs(first, images[0], CROP_COUNTS, config.repeats), strict=True)
        ),
        "images": dict(
            zip(IMAGE_COUNTS, image_costs(first, images, IMAGE_COUNTS, config.repeats), strict=True)
        ),
    }
    report = {"machine": describe_machine(first.device), "rows": rows, "cost": cost}
    write_json(folder / "speed_accuracy.json", report | {"config": asdict(config)}, indent=2)
    table = speed_accuracy_table(rows)
    with atomic_write(folder / "speed_accuracy.md", "w") as file:
        file.write(table)
    draw_speed_accuracy(rows, folder / "speed_accuracy.png")
    draw_costs(cost, folder / "cost.png")
    return table


def detect_in_turns(detector: Detector, paths: Sequence[Path]) -> None:
    """Read some images, detect in them, and go on to the next, with all threads in each network."""
    for start in range(0, len(paths), IMAGES_PER_BATCH):
        detector.detect(paths[start : start + IMAGES_PER_BATCH])


def _in_turns(name: str) -> str:
    return f"{name}, one batch at a time"


def _load(point: DetectorPoint, config: SpeedAccuracyConfig) -> Detector:
    detector = load_detector(point.weights, config.device, point.model)
    if detector.model.proposer is None:
        raise UserError(f"{point.weights}: this detector has no proposer of its own to be timed")
    calibration = calibration_images(config.data, config.calibration_split)
    return deploy_detector(detector, point.precision, calibration, point.engine)


def _peer(peer: PeerPoint, listed: Path, device: str) -> Callable[[], Any]:
    """A pass over the images in a file, scores from 0.001 and 100 detections as for COCO's AP.

    Ours and it have the same batches and, on the CPU, the same threads (it would take one less than
    there are).
    """
    try:
        from ultralytics import YOLO  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingPackageError("peers need Ultralytics: pip install ultralytics") from error
    model = YOLO(peer.weights)
    if peer.num_classes is not None:
        from ultralytics.nn.tasks import DetectionModel  # type: ignore[import-not-found]

        model.model = DetectionModel(peer.weights, nc=peer.num_classes, verbose=False)
    where = str(resolve_device(device))
    options = {"imgsz": peer.image_size, "conf": 0.001, "max_det": 100, "device": where}
    threads = torch.get_num_threads()

    def predict() -> None:
        for _ in model.predict(
            str(listed), stream=True, batch=IMAGES_PER_BATCH, verbose=False, **options
        ):
            # It takes one thread less at the beginning of each call, for the whole process.
            torch.set_num_threads(threads)
        torch.set_num_threads(threads)

    return predict


def speed_accuracy_table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: accuracy, speed, and milliseconds an image by stage."""
    lines = [
        "| detector | AP | AP50 | images/s | one batch at a time | crops | network share | "
        + " | ".join(f"{stage}, ms" for stage in STAGES)
        + " |",
        "| --- |" + " ---: |" * (6 + len(STAGES)),
    ]
    for name, row in rows.items():
        cells = [_cell(row.get("AP"), "{:.3f}"), _cell(row.get("AP50"), "{:.3f}")]
        cells.append(_cell(row["images_per_second"], "{:.1f}"))
        cells.append(_cell(row.get("images_per_second_in_turns"), "{:.1f}"))
        cells.append(_cell(row.get("crops"), "{:.1f}"))
        cells.append(_cell(row.get("network_share"), "{:.2f}"))
        stages = row.get("stages", {})
        cells += [_cell(stages.get(stage), "{:.1f}", 1e3) for stage in STAGES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(factor * value)


def draw_speed_accuracy(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """AP against images per second, a point each."""
    plot = new_plot(7.5, 5)
    panel = plot.subplots()
    shown = {name: row for name, row in rows.items() if row["AP"] is not None}
    by_speed = sorted(shown, key=lambda name: shown[name]["images_per_second"])
    as_accurate: Counter[float] = Counter()
    for name in by_speed:
        row = shown[name]
        # Of those as accurate as each other every other name goes below its point.
        as_accurate[round(row["AP"], 2)] += 1
        below = 5 if as_accurate[round(row["AP"], 2)] % 2 else -12
        colour = "C7" if row.get("peer") else "C1"
        x, y = row["images_per_second"], row["AP"]
        panel.scatter(x, y, color=colour, zorder=3)
        panel.annotate(
            literal(name), (x, y), xytext=(4, below), textcoords="offset points", fontsize=8
        )
    panel.set_xlabel("images per second, files to detections")
    panel.set_ylabel("AP")
    panel.set_title("Accuracy and speed", fontsize=10)
    # Room for the name of the fastest.
    panel.set_xlim(0, 1.3 * max(row["images_per_second"] for row in rows.values()))
    panel.margins(y=0.1)
    panel.grid(alpha=0.3)
    save_plot(plot, path)


def draw_costs(cost: dict[str, dict[int, float]], path: Path) -> None:
    """Milliseconds against crops and against images, with the line from zero to the last point."""
    plot = new_plot(10, 3.8)
    for panel, (what, seconds) in zip(plot.subplots(1, 2), cost.items(), strict=True):
        counts, taken = list(seconds), [1e3 * value for value in seconds.values()]
        panel.plot(counts, taken, "o-", color="C1")
        proportion = f"{taken[-1] / counts[-1]:.2f} ms each"
        panel.plot([0, counts[-1]], [0, taken[-1]], "--", color="C7", linewidth=1, label=proportion)
        panel.legend(frameon=False, fontsize="small")
        panel.set_xlabel(f"{what} at once")
        panel.set_ylabel("milliseconds")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    save_plot(plot, path)
