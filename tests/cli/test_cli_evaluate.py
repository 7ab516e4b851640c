import json
import shutil

from csham.data import prepare
from csham.training.run_folder import RunFolder


def parts_of(run):
    """Return the parts of a run's images."""
    config = RunFolder(run).read_config()
    return prepare(config.data, image_size=config.image_size).split(config.seed, config.validation)


def test_tables(csham, finished):
    code, out, _ = csham("evaluate", finished, "--quiet")
    assert code == 0
    for word in ("test part of", "last epoch (1)", "macro top-1", "each class", "confusion", "ant", "kappa"):
        assert word in out
    assert "no images here" not in out
    assert "top-5" not in out  # of three classes


def test_a_table_of_an_older_run_has_what_it_measured(capsys):
    from csham.cli.common import metrics_table

    older = {
        "top1": 50.0,
        "top5": 100.0,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
        "kappa": 0.0,
        "loss": 0.5,
        "images": 4,
    }
    metrics_table("", {"last": older})
    assert capsys.readouterr().out.split()[:8] == [
        "top-1",
        "top-5",
        "precision",
        "recall",
        "F1",
        "kappa",
        "loss",
        "images",
    ]


def test_classes_without_images_are_mentioned(csham, older, tmp_path, write_images):
    root = write_images(tmp_path / "more", classes=("ant", "bee"), count=5)
    write_images(root, classes=("cow",), count=1)  # one image is not divided: it trains
    assert "1 class has no images here; macro averages leave them out" in csham("evaluate", older, root)[1]


def test_json_has_everything_and_agrees_with_the_summary(csham, finished):
    code, out, _ = csham("evaluate", finished, "--weights", "best", "--json")
    assert code == 0
    found, summary = json.loads(out), json.loads((finished / "summary.json").read_text())
    assert found["top1"] == summary["validation_chosen"]["top1"]
    assert [row["class"] for row in found["per_class"]] == found["classes"] == ["ant", "bee", "cow"]
    assert sum(map(sum, found["confusion"])) == found["images"] == 12


def test_another_part_and_other_data(csham, finished, tmp_path, write_images):
    assert json.loads(csham("evaluate", finished, "--part", "train", "--json")[1])["images"] > 12
    data = write_images(tmp_path / "more", count=10, seed=2)
    found = json.loads(csham("evaluate", finished, data, "--part", "all", "--json")[1])
    assert (found["data"], found["images"]) == (str(data), 30)


def test_part_all_says_how_many_of_the_images_trained_the_network(csham, finished, images, tmp_path, write_images):
    parts = parts_of(finished)
    said = f"{finished} was trained on {len(parts.train)} of these 60 images, validated on {len(parts.validation)}"
    assert f"\n{said}\n" in csham("evaluate", finished, "--part", "all")[1]
    assert json.loads(csham("evaluate", finished, "--part", "all", "--json")[1])["note"] == said
    new = write_images(tmp_path / "new", count=10, seed=2)
    for part in ("train", "test"):
        assert "note" not in json.loads(csham("evaluate", finished, "--part", part, "--json")[1])
    assert "note" not in json.loads(csham("evaluate", finished, new, "--part", "all", "--json")[1])
    known = sorted(images.rglob("*.png"))[int(parts.train[0])]
    shutil.copy(known, new / known.parent.name / "known.png")
    assert f"{finished} was trained on 1 of these 31 images\n" in csham("evaluate", finished, new, "--part", "all")[1]


def test_part_all_of_weights_without_their_run_says_that_they_may_have_been_trained_on(csham, finished, images):
    file = finished / "model.safetensors"
    code, _, err = csham("evaluate", file, images)
    assert code == 2
    assert "--part all measures all, those that it was trained on too" in err
    out = csham("evaluate", file, images, "--part", "all")[1]
    assert f"\n{file} may have been trained on some of these 60 images: it does not say\n" in out


def test_output_is_a_folder_of_numbers_and_pictures(csham, finished, images, tmp_path):
    folder = tmp_path / "a" / "b"
    code, out, err = csham("evaluate", finished, images, "--part", "all", "--output", folder, "--quiet")
    assert code == 0, err
    assert f"files in {folder}: evaluation.json" in out
    written = json.loads((folder / "evaluation.json").read_text())
    assert written == json.loads(csham("evaluate", finished, images, "--part", "all", "--json", "--quiet")[1])
    assert "the most confident errors" in out or not written["errors"]
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = csham("evaluate", finished, "--output", bad)
        assert code == 2
        assert "Name another" in err


def test_several_views_and_what_has_no_value_are_said(csham, older, tmp_path, write_images):
    root = write_images(tmp_path / "more", classes=("ant",), count=10)
    write_images(root, classes=("bee", "cow"), count=1)
    code, out, err = csham("evaluate", older, root, "--tta")
    assert code == 0, err
    assert "ROC AUC, macro has no value here: all images are of one class" in out
    assert "test-time augmentation: mean probabilities of 2 views: the image and its mirror image" in out
    found = json.loads(csham("evaluate", older, root, "--json")[1])
    assert found["undefined"] == {"auc": "all images are of one class"}
    assert "auc" not in found
