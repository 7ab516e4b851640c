import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from csham.data.batches import Batch
from csham.training.evaluation import predict
from csham.training.metrics import Predictions, in_tables, of_study


def make(labels, top):
    n = len(labels)
    half = np.full(n, 0.5, np.float32)
    return Predictions(np.arange(n), np.array(labels), np.array(top), half, half, half)


def answered(logits, labels):
    """Predictions as a network with these logits makes them."""
    batch = Batch(torch.as_tensor(logits), torch.as_tensor(labels), len(labels), np.arange(len(labels)))
    return predict(lambda images: images, [batch], keep=True)


def test_against_numbers_worked_out_by_hand():
    # Class 2 is never named: precision 0 by definition, not a warning.
    found = make([0, 0, 1, 2], [[0, 1], [1, 0], [1, 2], [0, 2]]).summary(["a", "b", "c"])
    assert found["top1"] == 50
    assert "top5" not in found  # it would be 100, whatever the network says
    assert found["macro_top1"] == found["recall"]
    assert found["absent_classes"] == 0
    assert found["precision"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 0) / 3, abs=1e-3)
    assert found["recall"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3, abs=1e-3)
    # Chance agreement: (2*2 + 1*2 + 1*0) / 16 = 0.375; (0.5 - 0.375) / (1 - 0.375) = 0.2.
    assert found["kappa"] == pytest.approx(0.2)
    assert found["loss"] == 0.5
    assert found["images"] == 4


def test_top5_of_six_classes_and_more():
    answers = make([5, 0], [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    assert answers.summary(list("abcdef"))["top5"] == 50
    assert answers.accuracies(6) == {"loss": 0.5, "top1": 0, "top5": 50}
    assert answers.accuracies(5) == {"loss": 0.5, "top1": 0}


def test_percentages_have_four_decimals():
    assert make([0, 0, 1], [[0], [1], [0]]).summary(["a", "b"])["top1"] == 33.3333


def test_what_a_study_shows_beside_top1_and_which_of_it_for_every_run():
    shown = of_study()
    assert list(shown) == ["top5", "macro_recall", "macro_f1"]
    assert [name for name, metric in shown.items() if metric.study.every_run] == ["top5"]
    assert {metric.study.digits for metric in shown.values()} == {2}


def test_every_class_counts_alike_in_macro_top1():
    # Nine of ten and none of two: 75% of the images, 45% of the classes.
    found = make([0] * 10 + [1] * 2, [[0]] * 9 + [[1]] + [[0]] * 2).summary(["many", "few"])
    assert found["top1"] == 75
    assert found["macro_top1"] == 45


def test_macro_top1_is_scikit_learns_balanced_accuracy():
    rng = np.random.default_rng(0)
    labels, named = rng.integers(0, 5, 200), rng.integers(0, 5, (200, 1))
    expected = balanced_accuracy_score(labels, named[:, 0])
    assert make(labels, named).summary(list("abcde"))["macro_top1"] == pytest.approx(100 * expected, abs=1e-3)


def test_macro_averages_are_over_the_classes_with_images():
    # Classes 1 and 3 have none; one image of class 2 is called 3, which counts against class 2 alone.
    found = make([0, 0, 2, 2], [[0], [0], [2], [3]]).summary(["a", "b", "c", "d"])
    assert found["absent_classes"] == 2
    assert found["macro_top1"] == found["recall"] == 75
    assert found["precision"] == 100
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3) / 2, abs=1e-3)


def test_confusion_has_true_classes_as_rows_and_all_classes():
    assert make([0, 0, 1], [[0], [1], [1]]).confusion(["a", "b", "c"]).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_class_without_images_has_a_row():
    rows = make([0, 1], [[0], [0]]).per_class(["a", "b", "c"])
    assert [row["class"] for row in rows] == ["a", "b", "c"]
    assert [row["images"] for row in rows] == [1, 1, 0]
    assert rows[0]["recall"] == 100
    assert rows[1]["recall"] == 0
    assert rows[2]["recall"] is rows[2]["f1"] is None


def test_the_precision_of_a_class_that_is_never_named_is_none_of_its_images():
    rows = make([0, 1], [[0], [0]]).per_class(["a", "b", "c"])
    assert [row["precision"] for row in rows] == [50, 0, 0]
    assert rows[1]["f1"] == 0


def test_the_pages_table_is_the_declaration():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- metrics -->\n(.*)<!-- /metrics -->", page, flags=re.DOTALL)[1]
    lines = ["| name | unit | better | |", "|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.unit} | {m.better or ''} | {m.summary} |" for m in in_tables()]
    assert shown == "\n".join([*lines, ""]), "put these lines between the page's comments:\n" + "\n".join(lines)


def test_always_giving_the_only_class_is_no_agreement_beyond_chance():
    assert make([1, 1], [[1], [1]]).summary(["a", "b"])["kappa"] == 0
    assert make([1, 1], [[0], [0]]).summary(["a", "b"])["kappa"] == 0


def test_auc_is_scikit_learns_one_against_the_rest():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 4, 60), rng.standard_normal((60, 4), np.float32)
    found = answered(logits, labels)
    expected = roc_auc_score(labels, torch.tensor(logits).softmax(1), multi_class="ovr")
    assert found.summary(list("abcd"))["auc"] == pytest.approx(expected)
    two = answered(logits[:, :2], labels % 2)
    expected = roc_auc_score(labels % 2, torch.tensor(logits[:, :2]).softmax(1)[:, 1])
    assert two.summary(list("ab"))["auc"] == pytest.approx(expected)


def test_auc_leaves_out_the_classes_without_images_as_every_mean_over_classes():
    # Class 1 has none. Of the three pairs of one of class 0 and one of class 2, the probabilities order two.
    logits = np.array([[2, 0, 0], [0, 0, 0.5], [0, 5, 1], [1, 0, 1]], np.float32)
    found = answered(logits, [0, 2, 2, 2]).summary(list("abc"))
    assert found["auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert "undefined" not in found


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_of_images_of_one_class_auc_says_that_it_has_no_value(classes):
    found = answered(np.eye(classes, dtype=np.float32)[[0, classes - 1]], [0, 0]).summary(list("abcde")[:classes])
    assert "auc" not in found
    assert found["undefined"] == {"auc": "all images are of one class"}
    assert 0 <= found["ece"] <= 100


def test_without_all_probabilities_the_rest_is_measured():
    found = make([0, 1], [[0], [1]]).summary(["a", "b"])
    assert found["top1"] == 100
    assert "not kept" in found["undefined"]["auc"]


def test_the_brier_score_is_scikit_learns():
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 3, 50), rng.standard_normal((50, 3), np.float32)
    shares = torch.tensor(logits).softmax(1).numpy()
    truth = np.eye(3)[labels]
    found = answered(logits, labels).summary(list("abc"))["brier"]
    assert found == pytest.approx(((shares - truth) ** 2).sum(1).mean(), rel=1e-5)
    binary = torch.tensor(logits[:, :2]).softmax(1).numpy()
    found = answered(logits[:, :2], labels % 2).summary(list("ab"))["brier"]
    assert found == pytest.approx(brier_score_loss(labels % 2, binary[:, 1]), rel=1e-5)


def test_the_calibration_error_is_that_of_a_loop_over_bins():
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 3, 200), rng.standard_normal((200, 3), np.float32) * 3
    found = answered(logits, labels)
    expected, counted = 0, 0
    for number in range(15):
        inside = (found.confidences > number / 15) & (found.confidences <= (number + 1) / 15)
        if inside.any():
            gap = abs(found.hits[inside, 0].mean() - found.confidences[inside].mean(dtype=np.float64))
            expected += inside.sum() / 200 * gap
            counted += 1
    assert found.summary(list("abc"))["ece"] == pytest.approx(100 * expected, abs=1e-3)
    assert len(found.reliability()) == counted
    assert sum(one["images"] for one in found.reliability()) == 200


def test_a_network_that_is_right_as_often_as_it_says_is_calibrated():
    # Nine of ten right at 90%, and always sure and right.
    nine = np.log(np.array([[0.9, 0.1]], np.float32)).repeat(10, 0)
    assert answered(nine, [0] * 9 + [1]).summary(["a", "b"])["ece"] == pytest.approx(0, abs=1e-3)
    assert answered(nine, [0] * 10).summary(["a", "b"])["ece"] == pytest.approx(10, abs=1e-3)
    sure = np.array([[200, 0], [0, 200]], np.float32)
    assert answered(sure, [0, 1]).summary(["a", "b"])["ece"] == 0
    assert answered(sure, [1, 0]).summary(["a", "b"])["ece"] == 100
