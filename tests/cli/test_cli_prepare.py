import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def test_what_was_found(csham, images):
    code, out, err = csham("prepare", images, "--image-size", "16")
    assert code == 0
    assert "60 images of 16x16 pixels in 3 classes" in out
    assert "20 to 20 images each" in out
    assert err == ""


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_trains_and_is_evaluated_as_its_folder(csham, images, tmp_path, kind):
    archive = shutil.make_archive(tmp_path / "animals", kind, images.parent, images.name)
    assert "60 images of 32x32 pixels in 3 classes" in csham("prepare", archive)[1]
    words = "--backbone resnet14 --image-size 16 --epochs 1 --batch-size 8 --no-compile --quiet --device cpu"
    assert csham("train", archive, *words.split(), "--run", tmp_path / "run")[0] == 0
    found = [json.loads(csham("evaluate", tmp_path / "run", data, "--json")[1]) for data in (archive, images)]
    for of_archive, of_folder in zip(*(one.pop("errors") for one in found), strict=True):
        assert of_folder.pop("image").endswith(of_archive.pop("image"))  # a file, and a member of the archive
        assert of_archive == of_folder
    assert {**found[0], "data": None} == {**found[1], "data": None}


def test_a_table_is_prepared_and_its_faults_are_told(csham, images):
    table = images.parent / "animals.csv"
    lines = [f"{path},{path.parent.name}" for path in sorted(images.rglob("*.png"))]
    table.write_text("\n".join(["path,label", *lines]))
    assert "animals.csv: 60 images" in csham("prepare", table)[1]
    table.write_text("\n".join(["path,label", *lines, "last.png,"]))
    code, _, err = csham("prepare", table)
    assert (code, err) == (2, f"error: line 62 of {table} has no label. Fill it in, or remove the line.\n")


def test_json_alone_on_standard_output(csham, images):
    found = json.loads(csham("prepare", images, "--json")[1])
    assert found["classes"] == ["ant", "bee", "cow"]
    assert found["images"] == 60


def test_bad_files_are_listed_and_too_many_are_refused(csham, tmp_path, write_images):
    root = write_images(tmp_path / "animals")
    for index in range(12):
        (root / "ant" / f"bad{index}.png").write_bytes(b"not a picture")
    code, out, _ = csham("prepare", root, "--max-bad", "12")
    assert code == 0
    assert "bad0.png" in out
    assert "and 2 more" in out
    code, _, err = csham("prepare", root)
    assert code == 2
    assert "--max-bad" in err


def test_what_is_damaged_is_packed_anew_with_a_sentence(csham, tmp_path, write_images):
    root = write_images(tmp_path / "animals")
    packed = Path(json.loads(csham("prepare", root, "--json")[1])["cache"])
    with (packed / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    words = "--backbone lenet5 --epochs 1 --batch-size 8 --no-compile --device cpu --quiet"
    code, _, err = csham("train", root, *words.split(), "--run", tmp_path / "run")
    assert (code, err) == (0, "note: animals is packed anew: it is damaged: images.npy has a wrong checksum\n")


def test_an_image_of_too_many_pixels_is_a_bad_file_and_no_warning_of_pillow_s(tmp_path, write_images):
    root = write_images(tmp_path / "animals")
    Image.new("1", (9500, 9500)).save(root / "bee" / "large.png")
    csham_prepare = [sys.executable, "-m", "csham", "prepare", str(root)]
    done = subprocess.run(csham_prepare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "large.png: too many pixels (90.2 million, and at most 89.5 are decoded)\n" in done.stdout


@pytest.fixture
def leaking(tmp_path, write_images):
    """Most of the test images are training images, under other names, one of them of another class."""
    root = tmp_path / "leaking"
    write_images(root / "train")
    write_images(root / "test", seed=7)
    for number, file in enumerate(sorted((root / "train").rglob("*.png"))[::-1][:50]):
        folder = "ant" if number == 0 else file.parent.name
        shutil.copy(file, root / "test" / folder / f"copy{number}.png")
    for file in sorted((root / "test").rglob("?.png")):
        file.unlink()
    return root


def test_what_is_the_same_is_counted_and_named(csham, leaking):
    code, out, _ = csham("prepare", leaking, "--image-size", "16")
    assert code == 0
    assert "50 images in the test and the training part: test/ant/copy0.png = train/cow/" in out
    assert "and 47 more (--json lists all)" in out
    assert "1 image under two classes: train/cow/" in out
    found = json.loads(csham("prepare", leaking, "--image-size", "16", "--json")[1])["duplicates"]
    assert len(found["test_and_training"]) == 50
    assert found["repeated"] == 50


def test_train_and_compare_refuse_a_test_part_of_training_images_unless_told(csham, leaking, tmp_path):
    words = [leaking, "--image-size", "16", "--epochs", "1", "--batch-size", "8", "--no-compile"]
    code, _, err = csham("train", *words, "--backbone", "lenet5", "--run", tmp_path / "run")
    assert code == 2
    assert "test images are training images too: test/" in err
    assert "--allow-leaks" in err
    assert not (tmp_path / "run").exists()
    study = [
        "--backbones",
        "lenet5",
        "--attentions",
        "none",
        "--seeds",
        "1",
        "--study",
        tmp_path / "study",
        "--no-costs",
    ]
    code, _, err = csham("compare", *words, *study)
    assert code == 2
    assert "--allow-leaks" in err
    assert not (tmp_path / "study" / "study.yaml").exists()
    words = [*words, "--backbone", "lenet5", "--allow-leaks", "--run", tmp_path / "run"]
    code, out, err = csham("train", *words, "--json")
    assert code == 0, err
    assert "test images are training images too" in err
    assert json.loads(out)["test_images_trained_with"] > 25
