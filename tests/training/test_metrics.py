import numpy as np
import pytest

from csham.training.metrics import Predictions


def make(labels, top):
    n = len(labels)
    return Predictions(np.arange(n), np.array(labels), np.array(top), np.full(n, 0.5, np.float32))


def test_against_numbers_worked_out_by_hand():
    # Class 2 is never named: precision 0 by definition, not a warning.
    found = make([0, 0, 1, 2], [[0, 1], [1, 0], [1, 2], [0, 2]]).summary(["a", "b", "c"])
    assert found["top1"] == 50
    assert found["top5"] == 100
    assert found["precision"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 0) / 3, abs=1e-3)
    assert found["recall"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3, abs=1e-3)
    # Chance agreement: (2*2 + 1*2 + 1*0) / 16 = 0.375; (0.5 - 0.375) / (1 - 0.375) = 0.2.
    assert found["kappa"] == pytest.approx(0.2)
    assert found["loss"] == 0.5
    assert found["images"] == 4


def test_confusion_has_true_classes_as_rows_and_all_classes():
    assert make([0, 0, 1], [[0], [1], [1]]).confusion(["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_class_without_images_has_a_row():
    rows = make([0, 1], [[0], [0]]).per_class(["a", "b", "c"])
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert [row["images"] for row in rows] == [1, 1, 0]
    assert rows[0]["recall"] == 100
