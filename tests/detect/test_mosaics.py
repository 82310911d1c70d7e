"""Sixteen pictures in one are found as well as one by one, where the proposer keeps their scale.

`make test-large`, not part of `make test`: a detector of digits is trained for it, unless
`make demo` has left one.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.common.config import parse_config
from backbones.common.images import write_image
from detect.checkpoint import load_detector
from detect.config import DetectorConfig
from detect.data import DetectionDataset
from detect.data.open import build_dataset
from detect.deployment.detector import deploy_detector
from detect.evaluation import evaluate_coco
from detect.inference.score import detect_dataset
from detect.training.train import train_in_processes

pytestmark = pytest.mark.large

ROOT = Path(__file__).parents[2]
SIDE, ACROSS = 256, 4
"""Pixels of a picture, and pictures in a row of a mosaic."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, DetectionDataset]:
    """A run folder, and the held-out pictures that fill mosaics."""
    arguments = ["--config", str(ROOT / "configs/detector/digits_79.yaml")]
    run = ROOT / "runs/demo"
    if not (run / "best.safetensors").exists():
        run = tmp_path_factory.mktemp("digits") / "run"
        train_in_processes(parse_config(DetectorConfig, [*arguments, "--run", str(run)]))
    config = parse_config(DetectorConfig, arguments)
    return run, build_dataset(config.data, "val")


def mosaics(pictures: DetectionDataset, folder: Path) -> DetectionDataset:
    """As many as can be filled, one picture after the other."""
    columns: dict[str, list] = {"paths": [], "boxes": [], "labels": [], "image_index": []}
    for number in range(len(pictures) // ACROSS**2):
        canvas = torch.zeros(3, ACROSS * SIDE, ACROSS * SIDE, dtype=torch.uint8)
        for place in range(ACROSS**2):
            index = number * ACROSS**2 + place
            y, x = (SIDE * part for part in divmod(place, ACROSS))
            canvas[:, y : y + SIDE, x : x + SIDE] = pictures.load_image(index)
            sample = pictures.sample(index)
            columns["boxes"] += (sample.boxes + torch.tensor([x, y, x, y])).tolist()
            columns["labels"] += sample.labels.tolist()
            columns["image_index"] += [number] * len(sample.labels)
        columns["paths"].append(str(folder / f"{number}.png"))
        write_image(columns["paths"][-1], canvas)
    return like(pictures, ACROSS * SIDE, **columns)


def like(pictures: DetectionDataset, side: int, **columns: Any) -> DetectionDataset:
    count = len(columns["paths"])
    return DetectionDataset(
        class_names=pictures.class_names,
        category_ids=pictures.category_ids,
        image_ids=range(1, count + 1),
        sizes=[(side, side)] * count,
        **columns,
    )


def test_mosaics_score_as_their_pictures_do(trained, tmp_path):
    run, pictures = trained
    together = mosaics(pictures, tmp_path)
    used = [pictures.sample(index) for index in range(len(together) * ACROSS**2)]
    alone = like(
        *(pictures, SIDE),
        paths=[sample.path for sample in used],
        boxes=torch.cat([sample.boxes for sample in used]).tolist(),
        labels=torch.cat([sample.labels for sample in used]).tolist(),
        image_index=[index for index, sample in enumerate(used) for _ in sample.labels],
    )
    rows = {
        "one by one": (alone, {}),
        "mosaics, shrunk to a tile": (together, {}),
        "mosaics, at their scale": (together, {"learned": {"scale": 1.0}}),
    }
    scores = {}
    print()
    for name, (dataset, settings) in rows.items():
        detector = deploy_detector(load_detector(run, "cpu", settings), "bf16")
        found, _, cost = detect_dataset(detector, dataset)
        scores[name] = evaluate_coco(dataset, found)
        print(
            f"{name}: AP {scores[name]['AP']:.3f}, AP50 {scores[name]['AP50']:.3f}, "
            f"{cost.crops_per_image:.0f} crops and {cost.seconds_per_image:.2f} s an image"
        )
    aps = {name: row["AP"] for name, row in scores.items()}
    assert aps["mosaics, at their scale"] > aps["one by one"] - 0.01
    assert aps["mosaics, shrunk to a tile"] < 0.5 * aps["one by one"]
