"""Precision, recall and F1 by score threshold, held against counting at each threshold."""

import numpy as np
import pytest
import torch
from helpers.scenes import make_dataset, make_detections, scenes
from hypothesis import given, settings

from detect.evaluation.errors import confusion_matrix
from detect.evaluation.thresholds import THRESHOLDS, threshold_curves


def test_two_classes_by_hand():
    dataset = make_dataset([[(0, 0, 50, 50, 1), (100, 0, 150, 50, 1), (0, 100, 50, 150, 2)]])
    found = make_detections(
        [
            [
                (0, 0, 50, 50, 1, 0.9),  # right
                (200, 200, 250, 250, 1, 0.6),  # nothing there
                (100, 0, 150, 50, 1, 0.4),  # right
                (0, 100, 50, 150, 2, 0.3),  # right
                (0, 100, 50, 150, 3, 0.8),  # of a class without objects, of which nothing is said
            ]
        ]
    )
    curves = threshold_curves(dataset, found)
    assert curves.names == ["class 3", "class 17"]
    assert curves.at(0.3) == {
        "class 3": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8},
        "class 17": {"precision": 1.0, "recall": 1.0, "f1": 1.0},
    }
    assert curves.at(0.5)["class 3"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert curves.at(0.5)["class 17"] == {"precision": None, "recall": 0.0, "f1": 0.0}
    assert curves.at(0.9)["class 3"]["precision"] == 1
    assert curves.best_point() == {"F1": pytest.approx(0.9), "score_thresh": 0.01}


def test_a_threshold_keeps_the_score_that_equals_it():
    """0.3 as networks know it is a little more than 0.3, 0.7 a little less."""
    dataset = make_dataset([[(0, 0, 50, 50, 1)]])
    for score in THRESHOLDS:
        found = make_detections([[(0, 0, 50, 50, 1, score)]])
        assert found[0]["scores"].dtype == torch.float32
        f1 = threshold_curves(dataset, found).f1[0]
        assert np.array_equal(f1 == 1, score >= THRESHOLDS)


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_counts_are_those_of_what_is_left_at_each_threshold(scene):
    truth, found = scene
    dataset, detections = make_dataset(truth), make_detections(found)
    curves = threshold_curves(dataset, detections)
    counts = np.bincount([item[4] for items in truth for item in items], minlength=4)
    assert curves.names == [dataset.class_names[k - 1] for k in (1, 2, 3) if counts[k]]
    for threshold in (0.2, 0.5, 0.8):
        at = curves.at(threshold)
        for label in (1, 2, 3):
            if not counts[label]:
                continue
            # Of one class alone, the matrix tells hits and misses in the same way.
            one = [[item for item in items if item[4] == label] for items in truth]
            own = [[item for item in items if item[4] == label] for items in found]
            matrix = confusion_matrix(make_dataset(one), make_detections(own), threshold)
            hits, wrong, missed = matrix[label, label], matrix[0, label], matrix[label, 0]
            got = at[dataset.class_names[label - 1]]
            assert got["recall"] == hits / (hits + missed)
            assert got["f1"] == 2 * hits / (2 * hits + wrong + missed)
            assert got["precision"] == (hits / (hits + wrong) if hits + wrong else None)


def test_without_objects_there_is_no_best_threshold():
    curves = threshold_curves(make_dataset([[]]), make_detections([[(0, 0, 9, 9, 1, 0.5)]]))
    assert curves.best_point() == {"F1": None, "score_thresh": None}
    assert curves.at(0.5) == {}
