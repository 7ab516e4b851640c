import json
import shutil

import pytest
import torch

from csham.errors import UserError
from csham.training.checkpoints import load_checkpoint
from csham.training.evaluation import evaluate, load_network
from csham.training.run_folder import RunFolder

METRICS = ("top1", "macro_top1", "precision", "recall", "f1", "kappa", "loss", "images")


def test_the_runs_own_numbers_come_out_again(finished):
    summary = json.loads((finished / "summary.json").read_text())
    last, best = evaluate(finished).summary, evaluate(finished, weights="best").summary
    for name in METRICS:
        assert last[name] == pytest.approx(summary[name], rel=1e-5), name
        assert best[name] == pytest.approx(summary["validation_chosen"][name], rel=1e-5), name
    assert "top5" not in {**summary, **summary["validation_chosen"], **last, **best}  # there are three classes


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_the_batch_size_changes_nothing(finished, batch_size):
    found, expected = evaluate(finished, batch_size=batch_size), evaluate(finished)
    assert found.confusion.tolist() == expected.confusion.tolist()
    assert found.summary["loss"] == pytest.approx(expected.summary["loss"], rel=1e-4)


def test_parts_are_disjoint_and_cover_all(finished):
    parts = [set(evaluate(finished, part=part).predictions.indices) for part in ("test", "validation", "train")]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert set().union(*parts) == set(evaluate(finished, part="all").predictions.indices)


def test_other_images_of_the_same_classes(finished, tmp_path, write_images):
    write_images(tmp_path / "more", count=5, seed=1)
    found = evaluate(finished, str(tmp_path / "more"), part="all")
    assert found.summary["images"] == 15
    assert found.confusion.sum(1).tolist() == [5, 5, 5]


def test_a_class_too_small_for_the_test_part_is_left_out_of_macro_averages(finished, tmp_path, write_images):
    root = write_images(tmp_path / "more", classes=("ant", "bee"), count=10)
    write_images(root, classes=("cow",), count=1)
    found = evaluate(finished, str(root))
    assert found.summary["images"] == 4
    assert found.summary["absent_classes"] == 1
    recalls = [row["recall"] for row in found.per_class]
    assert recalls[2] is None
    assert found.summary["macro_top1"] == pytest.approx((recalls[0] + recalls[1]) / 2)


def test_classes_that_differ_are_named(finished, tmp_path, write_images):
    write_images(tmp_path / "zoo", classes=("ant", "bee", "dog"), count=5)
    with pytest.raises(UserError, match="lacks 'cow' and has the unknown 'dog'"):
        evaluate(finished, str(tmp_path / "zoo"))


def test_what_cannot_be_asked_for(finished):
    with pytest.raises(UserError, match="unknown part"):
        evaluate(finished, part="tset")
    with pytest.raises(UserError, match="unknown weights"):
        evaluate(finished, weights="worst")


def test_the_best_weights_need_only_the_safetensors_file(finished, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("checkpoints"))
    network, info = load_network(RunFolder(run), "best")
    assert info.classes == ["ant", "bee", "cow"]
    best = load_checkpoint(finished / "checkpoints" / "best.ckpt")["model"]
    for name, value in network.state_dict().items():
        assert torch.equal(value, best[name]), name
    with pytest.raises(UserError, match="no checkpoint"):
        load_network(RunFolder(run), "last")
