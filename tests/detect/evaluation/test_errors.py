"""Kinds of error, confusion, AP by size and precision curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scenes import SIZE, make_dataset, make_detections, scenes
from helpers.tide import SEEDS, scene
from hypothesis import given, settings
from torchvision.ops import box_area

from backbones.common.errors import UserError
from detect.evaluation import evaluate_coco, load_results, to_coco_results
from detect.evaluation.coco import evaluate_by_size, precision_curves
from detect.evaluation.errors import KINDS, confusion_matrix, error_report, judge_image

CAT, DOG = 1, 2


@settings(max_examples=60, deadline=None)
@given(scene=scenes())
def test_ap50_is_pycocotools(scene: Any) -> None:
    truth, found = scene
    # The drawn flag is VOC's; here it makes crowds.
    truth = [[(*item[:5], 0, item[5]) for item in items] for items in truth]
    dataset, detections = make_dataset(truth), make_detections(found)
    report = error_report(dataset, detections)
    want = evaluate_coco(dataset, detections)["AP50"]
    assert report.ap50 == (None if want is None else pytest.approx(want))


@settings(max_examples=60, deadline=None)
@given(scene=scenes())
def test_putting_errors_right_never_hurts(scene: Any) -> None:
    truth, found = scene
    report = error_report(make_dataset(truth), make_detections(found))
    assert min(report.cost.values()) >= -1e-9
    assert min(report.counts.values()) >= 0
    for kind in KINDS:
        if report.counts[kind] == 0:
            assert report.cost[kind] == pytest.approx(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_kinds_and_costs_are_tides(seed):
    answers = json.loads((Path(__file__).parent / "tide.json").read_text())
    truth, found = scene(seed)
    report = error_report(make_dataset(truth), make_detections(found))
    want = answers[str(seed)]
    assert report.counts == want["counts"]
    assert report.ap50 == pytest.approx(want["ap50"])
    assert report.cost == pytest.approx(want["cost"])


def test_an_object_belongs_to_the_best_error_of_either_kind():
    dataset = make_dataset([[(0, 0, 100, 100, CAT)]])
    misplaced, misnamed = ONE_OF_EACH["localisation"], (0, 0, 100, 100, DOG, 0.8)
    report = error_report(dataset, make_detections([[misplaced, misnamed]]))
    assert report.counts == dict.fromkeys(KINDS, 0) | {"localisation": 1, "classification": 1}
    # The dog's name put right is a second detection of what the better box stands for.
    assert report.cost == pytest.approx(dict.fromkeys(KINDS, 0.0) | {"localisation": 1.0})


ONE_OF_EACH = {
    "classification": (0, 0, 100, 100, DOG, 0.9),
    "localisation": (0, 0, 40, 100, CAT, 0.9),
    "both": (0, 0, 40, 100, DOG, 0.9),
    "background": (200, 200, 250, 250, CAT, 0.9),
}


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_one_error_of_each_kind(kind):
    """One cat; a better-scored error than its hit halves the precision there."""
    dataset = make_dataset([[(0, 0, 100, 100, CAT)]])
    hit = (0, 0, 100, 99, CAT, 0.5)
    report = error_report(dataset, make_detections([[ONE_OF_EACH[kind], hit]]))
    assert report.counts == dict.fromkeys(KINDS, 0) | {kind: 1}
    # An error of another class than the object's costs that object nothing.
    wrong_class = kind in ("classification", "both")
    assert report.ap50 == pytest.approx(1.0 if wrong_class else 0.5)
    assert report.cost[kind] == pytest.approx(0.0 if wrong_class else 0.5)


def test_an_object_meant_is_not_missed_and_gains_when_put_right():
    dataset = make_dataset([[(0, 0, 100, 100, CAT)]])
    for kind in ("classification", "localisation"):
        report = error_report(dataset, make_detections([[ONE_OF_EACH[kind]]]))
        assert report.ap50 == 0
        assert report.counts == dict.fromkeys(KINDS, 0) | {kind: 1}
        assert report.cost == pytest.approx(dict.fromkeys(KINDS, 0.0) | {kind: 1.0})


def test_duplicates_and_missed_objects():
    dataset = make_dataset([[(0, 0, 100, 100, CAT), (200, 0, 300, 100, CAT)]])
    found = [(0, 0, 100, 100, CAT, 0.9), (1, 0, 100, 100, CAT, 0.8)]
    report = error_report(dataset, make_detections([found]))
    assert report.counts == dict.fromkeys(KINDS, 0) | {"duplicate": 1, "missed": 1}
    # Precision 1 up to recall 0.5, which 51 of the 101 points lie below.
    assert report.ap50 == pytest.approx(51 / 101)
    assert report.cost["duplicate"] == pytest.approx(0)
    assert report.cost["missed"] == pytest.approx(50 / 101)


def test_a_class_without_its_missed_object_keeps_what_was_found_of_nothing():
    """As TIDE does it: the class's AP stays 0 instead of leaving the mean."""
    dataset = make_dataset([[(0, 0, 100, 100, CAT), (0, 200, 50, 250, DOG)]])
    found = [(0, 0, 100, 100, CAT, 0.9), (200, 200, 250, 250, DOG, 0.8)]
    report = error_report(dataset, make_detections([found]))
    assert report.counts == dict.fromkeys(KINDS, 0) | {"background": 1, "missed": 1}
    assert report.ap50 == pytest.approx(0.5)
    assert report.cost["missed"] == pytest.approx(0)
    report = error_report(dataset, make_detections([found[:1]]))
    assert report.cost["missed"] == pytest.approx(0.5)


def test_of_several_that_mean_one_object_the_best_becomes_its_hit():
    dataset = make_dataset([[(0, 0, 100, 100, CAT)]])
    found = [(0, 0, 40, 100, CAT, 0.9), (0, 0, 45, 100, CAT, 0.8)]
    report = error_report(dataset, make_detections([found]))
    assert report.counts["localisation"] == 2
    assert report.cost["localisation"] == pytest.approx(1.0)


def test_what_is_found_in_a_crowd_counts_nowhere():
    crowd = (0, 0, 200, 100, CAT, 0, 1)
    dataset = make_dataset([[crowd, (250, 0, 290, 40, CAT)]])
    inside = [(10 * i, 0, 10 * i + 30, 40, CAT, 0.9) for i in range(10)]
    others = [(250, 0, 290, 40, CAT, 0.6), (0, 0, 30, 40, DOG, 0.9)]
    detections = make_detections([inside + others])
    report = error_report(dataset, detections)
    assert report.ap50 == pytest.approx(1.0)
    assert report.counts == dict.fromkeys(KINDS, 0) | {"background": 1}
    matrix = confusion_matrix(dataset, detections, score_thresh=0.5)
    assert matrix[CAT, CAT] == matrix[0, DOG] == matrix.sum() - 1 == 1
    right, wrong, missed = judge_image(detections[0], dataset.sample(0))
    assert right.tolist() == [False] * 10 + [True, False]
    assert wrong.tolist() == [False] * 11 + [True]
    assert missed.tolist() == [False, False]


def test_verdicts_are_in_the_order_of_detections_and_objects():
    truth = [(0, 0, 300, 100, CAT, 0, 1), (0, 200, 50, 250, CAT), (100, 200, 150, 250, CAT)]
    found = [
        (105, 200, 150, 250, CAT, 0.2),  # found already
        (0, 200, 50, 250, DOG, 0.3),  # of another class
        (100, 200, 150, 250, CAT, 0.9),
    ]
    detections = make_detections([found])
    right, wrong, missed = judge_image(detections[0], make_dataset([truth]).sample(0))
    assert right.tolist() == [False, False, True]
    assert wrong.tolist() == [True, True, False]
    assert missed.tolist() == [False, True, False]


def test_confusion_by_hand():
    dataset = make_dataset(
        [[(0, 0, 50, 50, CAT), (100, 0, 150, 50, DOG), (200, 0, 250, 50, DOG, 0, 1)], []]
    )
    found = [
        [
            (0, 0, 50, 45, DOG, 0.9),  # a cat taken for a dog
            (1, 0, 50, 50, CAT, 0.8),  # the cat is taken: found where nothing is
            (100, 0, 150, 50, DOG, 0.4),  # below the threshold: that dog is missed
        ],
        [(0, 0, 9, 9, CAT, 0.7)],
    ]
    matrix = confusion_matrix(dataset, make_detections(found), score_thresh=0.5)
    want = np.zeros((4, 4), int)
    want[CAT, DOG] = 1
    want[0, CAT] = 2
    want[DOG, 0] = 1
    assert matrix.tolist() == want.tolist()


@settings(max_examples=30, deadline=None)
@given(scene=scenes())
def test_sizes_and_curves_are_coco(scene: Any) -> None:
    truth, found = scene
    dataset, detections = make_dataset(truth), make_detections(found)
    scores = evaluate_coco(dataset, detections)
    rows = evaluate_by_size(dataset, detections, sides=(0, 32, 96, np.inf))
    found_boxes = torch.cat([given["boxes"] for given in detections])
    sizes = torch.cat([*(sample.area for sample in dataset), box_area(found_boxes)])
    # What lies at a border is of both sizes to COCO, here of the larger one.
    if not ((sizes == 32**2) | (sizes == 96**2)).any():
        assert [row["AP"] for row in rows] == [scores[key] for key in ("APs", "APm", "APl")]
    assert sum(row["objects"] for row in rows) == sum(len(sample.labels) for sample in dataset)
    curves = [c for c in precision_curves(dataset, detections).values() if c is not None]
    want = scores["AP50"]
    assert (np.mean(curves) if curves else None) == (None if want is None else pytest.approx(want))


def test_an_object_at_a_border_counts_once():
    dataset = make_dataset([[(0, 0, 32, 32, CAT)]])
    rows = evaluate_by_size(dataset, make_detections([[(0, 0, 32, 32, CAT, 0.9)]]), (16, 32, 48))
    assert [row["objects"] for row in rows] == [0, 1]
    assert [row["AP"] for row in rows] == [None, pytest.approx(1.0)]


def test_results_of_a_file_are_the_detections(tmp_path):
    dataset = make_dataset([[(0, 0, 50, 50, CAT)], [], [(5, 5, 50, 50, DOG)]])
    found = [[(0, 0, 50, 45, DOG, 0.75), (1, 0, 50, 50, CAT, 0.5)], [], [(3, 4, 50, 60, 3, 0.25)]]
    detections = make_detections(found)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(to_coco_results(dataset, detections)))
    loaded = load_results(path, dataset)
    for want, got in zip(detections, loaded, strict=True):
        for key, value in want.items():
            assert got[key].dtype == value.dtype
            assert got[key].tolist() == value.tolist()


def test_results_as_others_write_them(tmp_path, caplog):
    """Ids as fractions; a box without area is left out and counted, the others are scored."""
    dataset = make_dataset([[(0, 0, 50, 50, CAT)]])
    entry = {"image_id": 100.0, "category_id": 3.0, "bbox": [0, 0, 50, 50], "score": 0.5}
    thin = [entry | {"bbox": [5, 5, 0, 9]}, entry | {"bbox": [5, 5, 9, -1]}]
    path = tmp_path / "r.json"
    path.write_text(json.dumps([entry, *thin]))
    (found,) = load_results(path, dataset)
    assert found["boxes"].tolist() == [[0, 0, 50, 50]]
    (message,) = caplog.messages
    assert message == f"{path}: results left out for a bbox without area: 2, first entry 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 100.5}, "entry 0 must have a whole number as image_id, .*, got {'image_id'"),
        ({"score": "good"}, "entry 0 must have .* and a number as score"),
        ({"score": "0.9"}, "entry 0 must have .* and a number as score"),
        ({"score": True}, "entry 0 must have .* and a number as score"),
        ({"image_id": True}, "entry 0 must have a whole number as image_id"),
        ({"bbox": "1234"}, r"entry 0 must have .*, bbox \[x, y, w, h\]"),
        ({"bbox": [0, 0, float("inf"), 5]}, "entry 0 must have finite numbers"),
        ({"image_id": 5}, "entry 0: image_id 5 is not in the dataset"),
        ({"category_id": 4}, "entry 0: category_id 4 is not in the dataset: 3, 17, 90"),
        ({"category_id": None}, "expected a whole number as category_id, got None"),
        ({"category_id": "3"}, "expected a whole number as category_id, got '3'"),
        ({"bbox": [0, 0, 0.5, 0.5]}, "expected boxes in pixels, .*are these fractions"),
    ],
)
def test_wrong_results_are_named(change, message, tmp_path):
    dataset = make_dataset([[(0, 0, 50, 50, CAT)]])
    entry = {"image_id": 100, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}
    (tmp_path / "r.json").write_text(json.dumps([entry | change]))
    with pytest.raises(UserError, match=f"r.json: .*{message}"):
        load_results(tmp_path / "r.json", dataset)


def test_truth_is_no_category(tmp_path):
    entry = {"image_id": 100, "category_id": True, "bbox": [0, 0, 5, 5], "score": 0.5}
    (tmp_path / "r.json").write_text(json.dumps([entry]))
    with pytest.raises(
        UserError, match="entry 0: expected a whole number as category_id, got True"
    ):
        load_results(tmp_path / "r.json", make_dataset([[]], category_ids=[1, 17]))


def test_odd_results_are_counted_and_scored_as_they_are(tmp_path, caplog):
    dataset = make_dataset([[(0, 0, 50, 50, CAT)]])
    entry = {"image_id": 100, "category_id": 3, "bbox": [60, 60, 50, 50], "score": 0.5}
    entries = [entry, entry | {"score": 90}, entry | {"score": -1}, entry | {"score": 1.0000001}]
    entries += [entry, entry | {"bbox": [SIZE, 5, 9, 9]}, entry | {"bbox": [60, 70, SIZE, SIZE]}]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(entries[:1]))
    load_results(path, dataset)
    assert caplog.messages == []
    path.write_text(json.dumps(entries))
    (found,) = load_results(path, dataset)
    assert len(found["scores"]) == len(entries)
    assert found["scores"][:3].tolist() == [0.5, 90, -1]
    assert caplog.messages == [
        f"{path}: scores outside 0 to 1, which thresholds go by: 2, first entry 1",
        f"{path}: entries that are there already, each an error in the scores: 1, first entry 4",
        f"{path}: boxes outside their image: 1, first entry 5",
        f"{path}: boxes that reach far beyond their image: 1, first entry 6",
        f"{path}: of these would fit as corners, not width and height: 1, first entry 6",
    ]
