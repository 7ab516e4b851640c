import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import csham
from csham.backbones import CifarResNet
from csham.data.views import Views
from csham.errors import UserError
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.evaluation import evaluate, find_weights, load_network
from csham.training.network import write_weights
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


def test_a_class_too_small_for_the_test_part_is_left_out_of_macro_averages(older, tmp_path, write_images):
    root = write_images(tmp_path / "more", classes=("ant", "bee"), count=10)
    write_images(root, classes=("cow",), count=1)
    found = evaluate(older, str(root))
    assert found.summary["images"] == 4
    assert found.summary["absent_classes"] == 1
    recalls = [row["recall"] for row in found.per_class]
    assert recalls[2] is None
    assert found.summary["macro_top1"] == pytest.approx((recalls[0] + recalls[1]) / 2)


@pytest.fixture
def grown(finished, images, copy_unlisted, tmp_path):
    """Function that gives a copy of the run whose images were added to, and perhaps says less of them."""

    def grow(*, summary=True):
        run, data = copy_unlisted(finished, tmp_path / "grown"), tmp_path / images.name
        shutil.copytree(images, data)
        shutil.copy(data / "ant/0.png", data / "ant/more.png")
        config = (run / "config.yaml").read_text().replace(str(images), str(data))
        (run / "config.yaml").write_text(config)
        if not summary:
            found = json.loads((run / "summary.json").read_text())
            del found["data_fingerprint"]
            (run / "summary.json").write_text(json.dumps(found))
        return run

    return grow


@pytest.mark.parametrize("summary", [True, False])
def test_a_part_of_changed_images_is_not_drawn_anew(grown, summary):
    """It would hold images that the run was trained on."""
    run = grown(summary=summary)
    for part in ("test", "validation", "train"):
        with pytest.raises(UserError, match=rf"gives no {part} part, .* --part all"):
            evaluate(run, part=part)
    assert evaluate(run, part="all").summary["images"] == len(csham.data.prepare(RunFolder(run).read_config().data))


def test_a_given_test_part_may_be_another(finished, tmp_path, write_images):
    for part, count in (("train", 2), ("test", 4)):
        write_images(tmp_path / "more" / part, count=count, seed=1)
    assert evaluate(finished, str(tmp_path / "more")).summary["images"] == 12
    with pytest.raises(UserError, match="gives no validation part"):
        evaluate(finished, str(tmp_path / "more"), part="validation")


def test_moved_images_are_the_runs(finished, images, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    assert evaluate(finished, str(tmp_path / "moved")).summary["top1"] == evaluate(finished).summary["top1"]


def test_classes_that_differ_are_named(finished, tmp_path, write_images):
    write_images(tmp_path / "zoo", classes=("ant", "bee", "dog"), count=5)
    with pytest.raises(UserError, match="lacks 'cow' and has the unknown 'dog'"):
        evaluate(finished, str(tmp_path / "zoo"))
    many = [f"dog {number}" for number in range(7)]
    write_images(tmp_path / "dogs", classes=["ant", "bee", "cow", *many[:5]], count=5)
    with pytest.raises(UserError, match=r"it has the unknown 'dog 0', 'dog 1', 'dog 2', 'dog 3', 'dog 4'\. "):
        evaluate(finished, str(tmp_path / "dogs"))
    write_images(tmp_path / "kennel", classes=["ant", "bee", "cow", *many], count=5)
    with pytest.raises(UserError, match=r"it has the unknown 'dog 0', .*, 'dog 4' and 2 more\. "):
        evaluate(finished, str(tmp_path / "kennel"))


def test_what_cannot_be_asked_for(finished):
    with pytest.raises(UserError, match="unknown part"):
        evaluate(finished, part="tset")
    with pytest.raises(UserError, match="unknown weights"):
        evaluate(finished, weights="worst")


def holds(network, checkpoint):
    weights = load_checkpoint(checkpoint)["model"]
    return all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.fixture
def two_epochs(finished, copy_unlisted, tmp_path):
    """A finished run whose chosen epoch is not its last, with other weights in each."""
    run = copy_unlisted(finished, tmp_path / "two")
    content = load_checkpoint(run / "checkpoints" / "last.ckpt")
    content["model"] = {
        name: value * 0.9 if value.is_floating_point() else value for name, value in content["model"].items()
    }
    save_checkpoint(run / "checkpoints" / "best.ckpt", content)
    summary = json.loads((run / "summary.json").read_text())
    first = RunFolder(run).read_metrics()[0]["val_top1"]
    summary["validation_chosen"] |= {"epoch": 1, "validation_top1": first}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_the_last_weights_need_only_the_safetensors_file(two_epochs, tmp_path):
    run = tmp_path / "moved"
    shutil.copytree(two_epochs, run, ignore=shutil.ignore_patterns("checkpoints"))
    network, info = load_network(RunFolder(run), "last")
    assert info.classes == ["ant", "bee", "cow"]
    assert holds(network, two_epochs / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="no checkpoint"):
        load_network(RunFolder(run), "best")


def test_the_weights_are_the_last_unless_asked_for_and_their_epoch_is_said(two_epochs):
    folder = RunFolder(two_epochs)
    for asked, name, epoch in ((None, "last", 2), ("last", "last", 2), ("best", "best", 1)):
        found = find_weights(folder, asked)
        assert (found.name, found.epoch) == (name, epoch)
        assert holds(load_network(folder, found.name)[0], two_epochs / "checkpoints" / f"{name}.ckpt")
        summary = evaluate(two_epochs, weights=asked).summary
        assert (summary["weights"], summary["epoch"]) == (name, epoch)
    assert [str(find_weights(folder, name)) for name in ("last", "best")] == ["last epoch (2)", "chosen (epoch 1)"]


def test_a_run_from_before_the_file_said_whose_weights_it_holds(two_epochs):
    """Its model.safetensors holds the chosen weights, and says nothing of it."""
    folder = RunFolder(two_epochs)
    best, info = load_network(folder, "best")
    write_weights(folder.weights, best.state_dict(), info)
    for name in ("last", "best"):
        assert holds(load_network(folder, name)[0], two_epochs / "checkpoints" / f"{name}.ckpt")
    assert find_weights(folder, None).name == "last"
    shutil.rmtree(two_epochs / "checkpoints")
    assert find_weights(folder, None).name == "best"


@pytest.mark.parametrize("metadata", [{"weights": '"first"'}, {"epoch": '"3"'}, {"epoch": "-1"}, {"weights": "[1]"}])
def test_a_file_that_says_what_cannot_be_of_its_weights(finished, tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    with safetensors.safe_open(finished / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        safetensors.torch.save_file(tensors, path, {**file.metadata(), "seal": "", **metadata})
    with pytest.raises(UserError, match="weights should be 'last' or 'best' of an epoch"):
        csham.load(path)


def test_answers_that_are_no_numbers_are_not_measured(finished, monkeypatch):
    forward = CifarResNet.forward
    monkeypatch.setattr(CifarResNet, "forward", lambda self, x: forward(self, x) * float("inf"))
    with pytest.raises(UserError, match=r"answers with numbers that are not finite, in \w+\. Either its last weights"):
        evaluate(finished)


def test_classes_in_another_order_are_measured_alike(finished, images, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["cow", "ant", "bee"]
    files = [(path, number) for number, name in enumerate(names) for path in sorted((images / name).iterdir())]
    encoded = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in files]
    table = pa.table({"image": encoded, "label": [number for _, number in files]})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    said = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(said), tmp_path / "all.parquet")
    found, expected = (evaluate(finished, str(data), part="all") for data in (tmp_path / "all.parquet", images))
    assert found.dataset.classes != expected.dataset.classes
    assert found.summary["loss"] == pytest.approx(expected.summary["loss"], rel=1e-4)
    assert found.summary["auc"] == pytest.approx(expected.summary["auc"])
    assert found.confusion.tolist() == expected.confusion.tolist()


def test_errors_are_named_with_their_files_the_most_confident_first(finished, images):
    found = evaluate(finished, str(images), part="all", weights="last", device="cpu")
    errors = found.errors()
    assert len(errors) == round(60 * (1 - found.summary["top1"] / 100))
    assert [one["probability"] for one in errors] == sorted((one["probability"] for one in errors), reverse=True)
    trained = csham.load(finished)
    for one in errors:
        path = Path(one["image"])
        assert path.parent == images / one["true"]
        shares = trained.probabilities([path])[0]
        assert trained.classes[shares.argmax()] == one["given"] != one["true"]
        assert one["probability"] == pytest.approx(shares.max().item(), abs=0.03)  # in bf16
        assert one["probability_of_true"] == pytest.approx(shares[trained.classes.index(one["true"])].item(), abs=0.03)


def test_several_views_are_averaged_and_said(finished):
    found = evaluate(finished, device="cpu", tta=True)
    assert found.summary["tta"] == "mean probabilities of 2 views: the image and its mirror image"
    trained = csham.load(finished)
    rows, S = found.predictions.indices, trained.info.image_size
    pixels = torch.from_numpy(found.dataset.images[rows])
    with torch.no_grad():
        shares = [trained.network(trained.transform.normalise(one)).softmax(1) for one in (pixels, pixels.flip(2))]
    expected = torch.stack(shares).mean(0)
    assert pixels.shape[1] == S
    np.testing.assert_allclose(found.predictions.probabilities, expected, atol=0.03)  # in bf16
    assert found.summary["loss"] != evaluate(finished, device="cpu").summary["loss"]
    with pytest.raises(UserError, match="nothing to average"):
        Views(28, mirrored=False)
