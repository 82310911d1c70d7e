"""Scenes on which `detect.evaluation.errors` is held against tidecv 1.0.1, the authors' package.

tidecv asks for opencv-python, which overwrites opencv-python-headless, so it is no dependency; its
answers stand in `tide.json` beside `test_errors.py`. To write them anew:

    pip install --no-deps --target DIR tidecv appdirs seaborn pandas
    PYTHONPATH=tests:.:DIR python -m helpers.tide tests/detect/evaluation/tide.json
"""

import json
import random
import sys
from pathlib import Path

SEEDS = range(12)
CLASSES = 3
KINDS = {
    "classification": "Cls",
    "localisation": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
"""Our words and tidecv's."""

Rows = list[list[tuple]]


def scene(seed: int) -> tuple[Rows, Rows]:
    """Objects (x1, y1, x2, y2, label) and detections with a score of each of some images.

    Every object draws detections that are good, displaced, of another class or both, in any order
    of scores, so that errors of all kinds compete for it; no two scores are equal. Of `random`
    only what gives the same numbers in every version of Python is used.
    """
    draw = random.Random(seed).random

    def between(low: float, high: float) -> float:
        return round(4 * (low + draw() * (high - low))) / 4

    truth: Rows = []
    found: Rows = []
    for _ in range(4):
        objects = []
        hits = []
        # Of each class at least one: tidecv counts classes that have no objects, as 0.
        for number in range(CLASSES + int(2 * draw())):
            x, y = 70 * number + between(0, 20), between(0, 100)
            width, height = between(20, 60), between(20, 60)
            label = 1 + number % CLASSES
            objects.append((x, y, x + width, y + height, label))
            for _ in range(int(5 * draw())):
                reach = 20 if draw() < 0.4 else 3
                x1, y1 = x + between(-reach, reach), y + between(-reach, reach)
                kind = label if draw() < 0.5 else 1 + int(CLASSES * draw())
                hits.append((x1, y1, x1 + width, y1 + height, kind, draw()))
        for _ in range(int(3 * draw())):
            x, y = between(0, 250), between(200, 250)
            hits.append((x, y, x + 40, y + 40, 1 + int(CLASSES * draw()), draw()))
        truth.append(objects)
        found.append(hits)
    return truth, found


def ask_tidecv(truth: Rows, found: Rows) -> dict[str, dict[str, float] | float]:
    """AP50, and by kind the number of errors and what they cost, in 0..1."""
    from tidecv import TIDE, Data

    objects, detections = Data("truth"), Data("found")
    for image, (items, hits) in enumerate(zip(truth, found, strict=True)):
        for x1, y1, x2, y2, label in items:
            objects.add_ground_truth(image, label, [x1, y1, x2 - x1, y2 - y1])
        for x1, y1, x2, y2, label, score in hits:
            detections.add_detection(image, label, score, [x1, y1, x2 - x1, y2 - y1])
    run = TIDE().evaluate(objects, detections, mode=TIDE.BOX)
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    costs = {error.short_name: cost / 100 for error, cost in run.fix_main_errors().items()}
    return {
        "ap50": run.ap / 100,
        "counts": {kind: counts[name] for kind, name in KINDS.items()},
        "cost": {kind: costs[name] for kind, name in KINDS.items()},
    }


if __name__ == "__main__":
    answers = {seed: ask_tidecv(*scene(seed)) for seed in SEEDS}
    Path(sys.argv[1]).write_text(json.dumps(answers, indent=1) + "\n")
