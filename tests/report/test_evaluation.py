"""Files and pictures of an evaluation: for few and many classes, tiny parts, no errors, names of any script."""

import csv
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from csham.data.batches import Batch
from csham.report.drawing import png_bytes
from csham.report.evaluation import SHOWN_ERRORS, draw_confusion, draw_errors, draw_reliability, write_evaluation
from csham.training.evaluation import Evaluation, evaluate, predict

FILES = {"evaluation.json", "per_class.csv", "confusion.csv", "reliability.csv", "errors.csv"}
FILES |= {"confusion.png", "reliability.png"}


def evaluation(classes, count, *, labels=None, right=False, size=8, stored=10):
    """What a network of no sense, or of every right answer, gives."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), count) if labels is None else np.array(labels)
    logits = 9 * np.eye(len(classes))[labels] if right else rng.standard_normal((count, len(classes)))
    batch = Batch(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels), count, np.arange(count))
    found = predict(lambda images: images, [batch], keep=True)
    pixels = rng.integers(0, 255, (count, stored, stored, 3)).astype(np.uint8)
    images = SimpleNamespace(images=pixels, image_size=size, path_of=lambda row: f"some/{row}.png")
    return Evaluation(
        {"run": "run", **found.summary(classes)},
        list(classes),
        found.per_class(classes),
        found.confusion(classes),
        found,
        images,
    )


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(evaluation("ab", 40), id="two classes"),
        pytest.param(evaluation([f"class {n}" for n in range(101)], 300), id="many classes"),
        pytest.param(evaluation("abc", 2), id="two images"),
        pytest.param(evaluation("abc", 1), id="one image"),
        pytest.param(evaluation("abc", 9, labels=[1] * 9), id="one class in the part"),
        pytest.param(evaluation("abc", 30, right=True), id="no errors"),
    ],
)
def test_all_files_of_any_evaluation(found, tmp_path):
    (tmp_path / "errors.png").write_bytes(b"of an earlier evaluation")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = write_evaluation(tmp_path, found)
    errors = found.errors()
    assert {path.name for path in files} == FILES | ({"errors.png"} if errors else set())
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    for path in tmp_path.glob("*.png"):
        assert Image.open(path).format == "PNG"
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["ece"] == found.summary["ece"]
    assert len(content["errors"]) == min(len(errors), SHOWN_ERRORS)
    assert sum(int(row["images"]) for row in rows(tmp_path / "reliability.csv")) == len(found.predictions.labels)
    assert [row["image"] for row in rows(tmp_path / "errors.csv")] == [f"some/{error['row']}.png" for error in errors]


def test_a_real_run_names_its_real_files(finished, images, tmp_path):
    found = evaluate(finished, str(images), part="all", device="cpu")
    write_evaluation(tmp_path / "new" / "folder", found)
    for row in rows(tmp_path / "new/folder/errors.csv"):
        assert Path(row["image"]).is_file()
    counts = rows(tmp_path / "new/folder/confusion.csv")
    assert [row["true class"] for row in counts] == found.classes


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_the_errors_are_told_in_words_with_the_images_that_the_network_saw():
    found = evaluation(["cat $x^2$", "w" * 60, "dog"], 60)
    figure = draw_errors(found)
    words = texts(figure)
    assert words[0] == f"{SHOWN_ERRORS} most confident of {len(found.errors())} errors in 60 images"
    first = found.errors()[0]
    assert words[1].startswith(f"given, {first['probability']:.0%}: ")
    assert words[2].startswith(f"true, {first['probability_of_true']:.0%}: ")
    assert not any("w" * 60 in line for line in words)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), found.dataset.images[first["row"]][1:9, 1:9])
    assert len(figure.axes) == SHOWN_ERRORS


def test_no_line_of_the_errors_is_wider_than_its_image():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_errors(evaluation(["W" * 60, "猫" * 40, "i" * 200], 30))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.get_window_extent() for axes in figure.axes]
    for number, text in enumerate(figure.texts[1:]):
        assert text.get_window_extent(canvas.get_renderer()).x1 <= boxes[number // 2].x1 + 8


def test_reliability_draws_the_bins_that_have_images():
    found = evaluation("abc", 200)
    above, below = draw_reliability(found).axes
    bins = found.predictions.reliability()
    heights = [bar.get_height() for bar in above.containers[0]]
    assert heights == [one["accuracy"] for one in bins]
    assert [bar.get_height() for bar in below.containers[0]] == [one["images"] for one in bins]
    assert f"ECE {found.summary['ece']:.2f}%" in above.get_title(loc="left") + above.get_title()


def test_a_confusion_matrix_has_names_where_they_can_be_read():
    few, many = draw_confusion(evaluation("abc", 30)), draw_confusion(evaluation([f"c{n}" for n in range(101)], 300))
    assert [label.get_text() for label in few.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert sum(int(text.get_text()) for text in few.axes[0].texts) == 30
    assert not many.axes[0].texts
    assert "number of the class" in many.axes[0].get_xlabel()


def test_names_of_any_script_are_drawn_without_a_warning_for_each():
    found = evaluation(["кошка", "قطة", "\N{CAT FACE}", "\N{GRINNING FACE}"], 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (draw_errors, draw_confusion, draw_reliability):
            assert Image.open(io.BytesIO(png_bytes(draw(found)))).width > 100
