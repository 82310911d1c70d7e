import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scenes import CATEGORY_IDS, make_dataset, make_detections, scenes
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from backbones.common.errors import UserError
from detect.data import DetectionDataset, load_coco
from detect.evaluation import coco_results, evaluate_coco, evaluate_voc, to_coco_results
from detect.evaluation.coco import evaluate_by_size
from detect.evaluation.errors import confusion_matrix, error_report


def kit_average_precision(
    truth: list[list[tuple]],
    found: list[list[tuple]],
    label: int,
    iou_thresh: float,
    method: str,
) -> float | None:
    """VOCevaldet.m and VOCap.m line by line: 1-based inclusive boxes, loops, no arrays."""
    objects = {
        index: [
            {"box": (o[0] + 1, o[1] + 1, o[2], o[3]), "diff": o[5], "det": False}
            for o in items
            if o[4] == label
        ]
        for index, items in enumerate(truth)
    }
    npos = sum(not o["diff"] for items in objects.values() for o in items)
    if npos == 0:
        return None
    hits = [
        (hit[5], index, (hit[0] + 1, hit[1] + 1, hit[2], hit[3]))
        for index, items in enumerate(found)
        for hit in sorted(items, key=lambda hit: -hit[5])
        if hit[4] == label
    ]
    hits.sort(key=lambda hit: -hit[0])
    tp = fp = 0
    recall, precision = [], []
    for _, index, bb in hits:
        ovmax, best = -np.inf, None
        for candidate in objects[index]:
            bbgt = candidate["box"]
            iw = min(bb[2], bbgt[2]) - max(bb[0], bbgt[0]) + 1
            ih = min(bb[3], bbgt[3]) - max(bb[1], bbgt[1]) + 1
            if iw > 0 and ih > 0:
                ua = (
                    (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)
                    + (bbgt[2] - bbgt[0] + 1) * (bbgt[3] - bbgt[1] + 1)
                    - iw * ih
                )
                if iw * ih / ua > ovmax:
                    ovmax, best = iw * ih / ua, candidate
        if best is not None and ovmax >= iou_thresh:
            if not best["diff"]:
                if best["det"]:
                    fp += 1
                else:
                    tp += 1
                    best["det"] = True
        else:
            fp += 1
        recall.append(tp / npos)
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
    if method == "11_point":
        total = 0.0
        for point in range(11):
            total += max(
                [p for r, p in zip(recall, precision, strict=True) if r >= point / 10], default=0.0
            )
        return total / 11
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


@settings(max_examples=150, deadline=None)
@given(
    scene=scenes(),
    iou_thresh=st.sampled_from([0.3, 0.5, 0.75]),
    method=st.sampled_from(["all_point", "11_point"]),
)
def test_voc_agrees_with_the_development_kit(scene: Any, iou_thresh: float, method: Any) -> None:
    truth, found = scene
    scores = evaluate_voc(make_dataset(truth), make_detections(found), iou_thresh, method)
    expected = {
        f"class {category_id}": kit_average_precision(truth, found, label, iou_thresh, method)
        for label, category_id in enumerate(CATEGORY_IDS, start=1)
    }
    assert scores["per_class"] == pytest.approx(expected)
    known = [value for value in expected.values() if value is not None]
    assert scores["mAP"] == (pytest.approx(np.mean(known)) if known else None)


def test_voc_by_hand() -> None:
    truth: list[list[tuple]] = [[(0, 0, 10, 10, 1), (50, 50, 60, 60, 1, 1)], [(0, 0, 10, 10, 1)]]
    found = [
        [
            (0, 0, 10, 5, 1, 0.9),  # IoU 0.5 exactly: a hit
            (0, 0, 10, 10, 1, 0.8),  # second on the same object: false
            (50, 50, 60, 60, 1, 0.7),  # difficult: neither
            (50, 50, 60, 60, 1, 0.6),  # difficult again: still neither
        ],
        [(0, 0, 10, 10, 1, 0.5)],
    ]
    args = make_dataset(truth), make_detections(found)
    # Precision 1 up to recall 1/2, then 2/3.
    assert evaluate_voc(*args)["mAP"] == pytest.approx((1 + 2 / 3) / 2)
    assert evaluate_voc(*args, method="11_point")["mAP"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert evaluate_voc(*args, iou_thresh=0.51)["mAP"] == pytest.approx(2 / 3)
    assert evaluate_voc(*args)["per_class"]["class 17"] is None
    crowd = make_dataset([[(0, 0, 10, 10, 1), (50, 50, 60, 60, 1, 0, 1)], [(0, 0, 10, 10, 1)]])
    assert evaluate_voc(crowd, args[1]) == evaluate_voc(*args)


def direct_pycocotools(tmp: Path, dataset: DetectionDataset, results: list) -> COCOeval:
    """pycocotools as anyone would run it, on files."""
    (tmp / "truth.json").write_text(json.dumps(dataset.to_coco()))
    (tmp / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@settings(max_examples=40, deadline=None)
@given(scene=scenes(), crowd=st.booleans())
def test_coco_agrees_with_pycocotools_on_files(
    tmp_path_factory: pytest.TempPathFactory, scene: Any, crowd: bool
) -> None:
    truth, found = scene
    if crowd:
        # The drawn flag is VOC's; here it makes crowds.
        truth = [[(*item[:5], 0, item[5]) for item in items] for items in truth]
    # Category ids that do not rise with the labels.
    dataset, detections = make_dataset(truth, [17, 90, 3]), make_detections(found)
    results = to_coco_results(dataset, detections)
    scores = evaluate_coco(dataset, detections)
    assert evaluate_coco(dataset, results) == scores
    if not results:
        return
    direct = direct_pycocotools(tmp_path_factory.mktemp("coco"), dataset, results)
    names = {0: "AP", 1: "AP50", 2: "AP75", 3: "APs", 4: "APm", 5: "APl", 8: "AR100"}
    for place, name in names.items():
        expected = None if direct.stats[place] == -1 else pytest.approx(direct.stats[place])
        assert scores[name] == expected, name
    for name, category_id in zip(dataset.class_names, dataset.category_ids, strict=True):
        column = direct.eval["precision"][:, :, direct.params.catIds.index(category_id), 0, 2]
        expected = None if column.max() == -1 else pytest.approx(column.mean())
        assert scores["per_class"][name] == expected


def test_coco_results_round_trip(tmp_path: Path) -> None:
    dataset = make_dataset([[(1, 2, 30, 40, 3)], [], [(5, 5, 9, 9, 1), (50, 60, 90, 91.5, 2)]])
    (tmp_path / "a.json").write_text(json.dumps(dataset.to_coco()))
    again = load_coco(tmp_path / "a.json", tmp_path)
    perfect = [
        {"boxes": s.boxes, "labels": s.labels, "scores": torch.ones(len(s.boxes))} for s in again
    ]
    results = to_coco_results(again, perfect)
    assert results[0] == {"image_id": 100, "category_id": 90, "bbox": [1, 2, 29, 38], "score": 1}
    assert [result["category_id"] for result in results] == [90, 3, 17]
    assert coco_results(perfect[2], 114, again.category_ids) == results[1:]
    for scores in (evaluate_coco(dataset, perfect), evaluate_coco(dataset, results[::-1])):
        assert (scores["AP"], scores["APs"]) == (pytest.approx(1), pytest.approx(1))
        assert scores["APl"] is None
        assert scores["per_class"] == pytest.approx(dict.fromkeys(dataset.class_names, 1.0))
    assert evaluate_voc(dataset, perfect)["mAP"] == pytest.approx(1)


def test_area_comes_from_the_dataset(tmp_path: Path) -> None:
    """A large box around a small segment is a small object."""
    document = make_dataset([[(0, 0, 200, 200, 1)]]).to_coco()
    document["annotations"][0]["area"] = 500
    (tmp_path / "a.json").write_text(json.dumps(document))
    dataset = load_coco(tmp_path / "a.json", tmp_path)
    scores = evaluate_coco(dataset, make_detections([[(0, 0, 200, 200, 1, 0.5)]]))
    assert (scores["APs"], scores["APl"]) == (pytest.approx(1), None)


def test_iou_thresholds() -> None:
    dataset = make_dataset([[(0, 0, 100, 100, 1)]])
    for bottom, names in ((49, set()), (50, {"AP50"}), (74, {"AP50"}), (75, {"AP50", "AP75"})):
        scores = evaluate_coco(dataset, make_detections([[(0, 0, 100, bottom, 1, 0.5)]]))
        assert {name for name in ("AP50", "AP75") if scores[name] == pytest.approx(1)} == names


def test_max_dets() -> None:
    dataset = make_dataset([[(0, 0, 10, 10, 1)]])
    found = make_detections([[(50, 50, 90, 90, 1, 0.9), (0, 0, 10, 10, 1, 0.8)]])
    assert evaluate_coco(dataset, found)["AP"] == pytest.approx(0.5)
    limited = evaluate_coco(dataset, found, max_dets=1)
    assert (limited["AP"], limited["AR1"]) == (0, 0)
    many = make_detections([[(50, 50, 90, 90, 1, 0.9)] * 150 + [(0, 0, 10, 10, 1, 0.8)]])
    assert evaluate_coco(dataset, many, max_dets=200)["AR200"] == pytest.approx(1)


def test_crowded_images_are_also_scored_with_all_detections(caplog) -> None:
    """300 objects, all found: COCO counts a hundred of them."""
    boxes = [
        (10 * (n % 20), 10 * (n // 20), 10 * (n % 20) + 8, 10 * (n // 20) + 8) for n in range(300)
    ]
    dataset = make_dataset([[(*box, 1) for box in boxes], [(0, 0, 10, 10, 2)]])
    found = make_detections([[(*box, 1, 0.9) for box in boxes], [(0, 0, 10, 10, 2, 0.8)]])
    scores = evaluate_coco(dataset, found)
    assert scores["per_class"]["class 3"] == pytest.approx(0.337, abs=1e-3)
    every = dict(scores["crowded"])
    of_classes = {"class 3": 1.0, "class 17": 1.0, "class 90": None}
    assert every.pop("per_class") == pytest.approx(of_classes)
    assert every == pytest.approx({"images": 1, "AP": 1.0, "AP50": 1.0, "AP75": 1.0, "AR": 1.0})
    assert "images with more objects or detections: 1; with all detections AP 1.000" in caplog.text
    # What the kinds of error are is counted as the confusion matrix is, of all.
    report = error_report(dataset, found)
    assert (report.ap50, report.counts["missed"]) == (pytest.approx(1.0), 0)
    assert confusion_matrix(dataset, found, 0.5)[1, 1] == 300
    # The limit is of each class.
    apart = make_dataset([[(*box, 1 + n % 3) for n, box in enumerate(boxes)]])
    assert evaluate_coco(apart, NOTHING[:1])["crowded"] is None
    # Detections that do not count are said as well: the best hundred miss the one object.
    few = make_dataset([[(0, 0, 8, 8, 1)], [(0, 0, 8, 8, 1)]])
    ranked = [[(*box, 1, 0.9 - 0.001 * n) for n, box in enumerate(reversed(boxes))], []]
    scores = evaluate_coco(few, make_detections(ranked))
    assert (scores["AP"], scores["crowded"]["images"]) == (0, 1)
    assert scores["crowded"]["AP"] > 0


NOTHING: list[dict[str, Tensor]] = make_detections([[], []])


def test_no_detections(capsys: pytest.CaptureFixture) -> None:
    dataset = make_dataset([[(0, 0, 10, 10, 1)], []])
    for found in (NOTHING, []):
        scores = evaluate_coco(dataset, found)
        assert scores["AP"] == scores["AR100"] == scores["per_class"]["class 3"] == 0
        assert scores["APl"] is scores["per_class"]["class 17"] is None
    assert evaluate_voc(dataset, NOTHING) == {
        "mAP": 0,
        "per_class": {"class 3": 0, "class 17": None, "class 90": None},
    }
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("found", [NOTHING, make_detections([[(0, 0, 9, 9, 1, 0.5)], []])])
def test_no_ground_truth(found: list[dict[str, Tensor]]) -> None:
    dataset = make_dataset([[], []])

    def values(scores: Mapping[str, Any]) -> set:
        by_class = {"per_class", "per_class_50"}
        return {value for key, value in scores.items() if key not in by_class} | {
            value for key in by_class & scores.keys() for value in scores[key].values()
        }

    assert values(evaluate_coco(dataset, found)) == {None}
    assert values(evaluate_voc(dataset, found)) == {None}


def test_errors() -> None:
    dataset = make_dataset([[(0, 0, 10, 10, 1)], []])
    for evaluate in (evaluate_coco, evaluate_voc, to_coco_results):
        with pytest.raises(ValueError, match="expected one entry for each of 2 images, got 1"):
            evaluate(dataset, NOTHING[:1])
    with pytest.raises(ValueError, match="method must be all_point or 11_point, got '12_point'"):
        evaluate_voc(dataset, NOTHING, method="12_point")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_dets must be at least 1, got 0"):
        evaluate_coco(dataset, NOTHING, max_dets=0)
    result = {"image_id": 100, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 0.5}
    for change, message in (
        ({"image_id": 1}, "results[0]: image_id 1 is not in the dataset"),
        ({"category_id": 1}, "results[0]: category_id 1 is not in the dataset"),
    ):
        with pytest.raises(UserError) as error:
            evaluate_coco(dataset, [result | change])
        assert str(error.value) == message


def test_sizes_as_seen_are_those_of_resized_images():
    """An object and a miss of 20 pixels: seen at half and at twice that."""
    truth = [[(0, 0, 20, 20, 1)], [(0, 0, 20, 20, 1)]]
    found = make_detections([[(0, 0, 20, 20, 1, 0.9)], [(100, 100, 120, 120, 1, 0.8)]])
    sides = (0.0, 16.0, 32.0, 64.0)
    rows = evaluate_by_size(make_dataset(truth), found, sides)
    assert [row["objects"] for row in rows] == [0, 2, 0]
    seen = evaluate_by_size(make_dataset(truth), found, sides, factors=[0.5, 2.0])
    assert [row["objects"] for row in seen] == [1, 0, 1]
    assert [row["AP"] for row in seen] == [pytest.approx(1.0), None, 0.0]
