import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("reference")


def test_pictures_and_arrays_of_two_runs(csham, attended, finished, images, tmp_path):
    files = [images / "ant" / "1.png", images / "bee" / "1.png"]
    (tmp_path / "1.png").write_bytes(b"junk")
    folder = tmp_path / "out"
    words = ["explain", attended, *files, tmp_path / "1.png", "--compare", finished, "--output", folder, "--npz"]
    code, out, err = csham(*words, "--format", "svg", "--device", "cpu")
    assert code == 0, err
    # Two files are called 1: the second gets its folder's name.
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["1.svg", "1.1.npz", "1.2.npz", "bee-1.svg", "bee-1.1.npz", "bee-1.2.npz"]
    )
    assert f"{files[0]}: resnet20 + csham (transfer): " in out
    assert f"2 pictures in {folder}" in out
    assert "resnet20: no attention attached; its pictures show Grad-CAM alone" in err
    assert "1 of 3 images could not be read:" in err
    assert "not an image" in err
    with np.load(folder / "bee-1.1.npz", allow_pickle=False) as content:
        assert content["layer1.1.bn2/spatial"].shape == (16, 16)


def test_json_has_answers_files_and_scores(csham, attended, images, tmp_path):
    folder = tmp_path / "out"
    words = ["explain", attended, images / "cow" / "0.png", "--output", folder, "--samples", "2", "--json", "--quiet"]
    code, out, err = csham(*words, "--target", "ant", "--layer", "layer2", "--top-k", "2", "--device", "cpu")
    assert (code, err) == (0, "")
    found = json.loads(out)
    (image,) = found["images"]
    assert Image.open(image["picture"]).format == "PNG"
    (network,) = image["networks"]
    assert (network["target"], network["gradcam_layer"], len(network["predictions"])) == ("ant", "layer2", 2)
    assert [row["map"] for row in found["faithfulness"][0]["maps"]][:4] == ["layer1", "layer2", "layer3", "Grad-CAM"]
    assert found["unreadable"] == []


def test_scores_alone(csham, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = csham("explain", finished, "--samples", "2", "--device", "cpu", "--quiet")
    assert code == 0
    for word in ("resnet20: how faithful each map is, 2 test images", "Grad-CAM", "random order", "lower is more"):
        assert word in out
    assert not list(tmp_path.iterdir())


def test_scores_go_where_output_says(csham, finished, attended, tmp_path):
    folder = tmp_path / "a" / "b"
    words = [
        "explain",
        finished,
        "--compare",
        attended,
        "--samples",
        "2",
        "--output",
        folder,
        "--device",
        "cpu",
        "--quiet",
    ]
    code, out, err = csham(*words)
    assert (code, err) == (0, "")
    assert f"scores in {folder / 'faithfulness.csv'}" in out
    assert [path.name for path in folder.iterdir()] == ["faithfulness.csv"]
    with (folder / "faithfulness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["network"] for row in rows} == {"resnet20", "resnet20 + csham (transfer)"}
    for row in rows:
        assert float(row["deletion_low"]) <= float(row["deletion"]) <= float(row["deletion_high"])
        assert (row["insertion_minus_random"] == "") == (row["verdict"] == "knows nothing of the image")
    assert csham(*words, "--json")[0] == 0


def test_a_folder_leaves_out_the_pictures_that_were_made_of_it(csham, finished, write_images, tmp_path, monkeypatch):
    write_images(tmp_path / "photos", count=1)
    shutil.copy(tmp_path / "photos/ant/0.png", tmp_path / "photos/mine.png")  # so that its folders are no classes
    monkeypatch.chdir(tmp_path / "photos")
    for _ in range(2):
        code, out, _ = csham("explain", finished, ".", "--device", "cpu", "--quiet")
        assert code == 0
        assert "4 pictures in explanations" in out
    assert sorted(path.name for path in (tmp_path / "photos/explanations").iterdir()) == [
        "0.png", "bee-0.png", "cow-0.png", "mine.png",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["cat.png", "dog.jpg"], ["cat.png", "dog.jpg", "--npz"]])
def test_no_file_of_the_users_is_replaced(csham, finished, images, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    picture = (images / "ant" / "1.png").read_bytes()
    mine = dict.fromkeys(["cat.png", "dog.jpg", "dog.png"], picture) | {"cat.npz": b"mine"}
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    found = []
    for _ in range(2):  # and the second call replaces the pictures of the first
        code, _, err = csham("explain", finished, *words, "--output", ".", "--device", "cpu", "--quiet")
        assert code == 0, err
        assert {name: (tmp_path / name).read_bytes() for name in mine} == mine
        found.append(sorted(path.name for path in tmp_path.glob("*") if path.name not in mine))
    assert found[0] == found[1]
    assert [name for name in found[0] if name.endswith(".png")] == ["cat-2.png", "dog-2.png"]
    code, _, _ = csham("explain", finished, "cat-2.png", "--output", ".", "--device", "cpu", "--quiet")
    assert code == 0
    assert (tmp_path / "cat-2-2.png").exists()  # a picture that is explained itself stays, too


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to explain. Name images or folders, or --samples N"),
        (["nowhere.png"], "there is no file or folder 'nowhere.png'"),
        (["PLACE"], "no file below the folder"),
        (["IMAGES", "--output", "IMAGES"], "no images but those in"),
        (["BAD"], "error: no image could be read"),
        (["IMAGE", "--target", "cowl"], "unknown class of resnet20 'cowl'. Did you mean 'cow'"),
        (["IMAGE", "--layer", "layer4"], "unknown layer 'layer4'. Did you mean 'layer"),
        (["IMAGE", "--format", "jpg"], "unknown format 'jpg'"),
        (["IMAGE", "--weights", "lost"], "unknown weights 'lost'"),
        (["IMAGE", "--samples", "0"], "--samples must be at least 1"),
        (["IMAGE", "--output", "BAD"], "is not a folder"),
        (["IMAGE", "--device", "tpu"], "unknown device 'tpu'"),
        (["IMAGE", "--seed", "-1"], "--seed must be from 0 to below 2**63, got -1"),
        (["--samples", "2", "--seed", str(2**70)], "--seed must be from 0"),
        (["--samples", "2", "--target", "ant"], "--target is for pictures"),
        (["IMAGE", "--compare", "gone"], "there is no run folder gone"),
    ],
)
def test_what_cannot_work_is_told_and_leaves_nothing(csham, finished, images, tmp_path, monkeypatch, words, message):
    (tmp_path / "place").mkdir()
    (tmp_path / "bad.png").write_bytes(b"junk")
    known = {
        "IMAGES": images,
        "IMAGE": images / "cow" / "0.png",
        "PLACE": tmp_path / "place",
        "BAD": tmp_path / "bad.png",
    }
    monkeypatch.chdir(tmp_path)
    code, _, err = csham("explain", finished, "--device", "cpu", *(known.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "place"]


def test_a_network_without_its_run_has_no_scores_and_leaves_no_folder(csham, tmp_path):
    code, _, err = csham("explain", "zoo:resnet14-digits", "--samples", "2", "--output", tmp_path / "out")
    assert code == 2
    assert "does not say what it was trained on. Give the run folder for test images" in err
    assert not list(tmp_path.iterdir())
