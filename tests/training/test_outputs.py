"""Places of results: what a command was given stays as it was, and what harms nothing is let through."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from csham.errors import UserError
from csham.files import sum_files
from csham.training.outputs import check_file, check_folder, check_output


@pytest.fixture
def there(tmp_path, monkeypatch, write_images):
    """Two data sets, photos in no classes, runs with sums and without, a study, and a folder of the user's."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", count=1)
    write_images(tmp_path / "parts/train", count=1)
    shutil.copytree("data", "photos/trips")
    shutil.copy("data/ant/0.png", "photos/mine.png")
    for run in (tmp_path / "run", tmp_path / "old"):
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text("data: data\n")
        for name in ("environment.json", "confusion.csv", "answers.csv"):
            (run / name).write_text("text")
        (run / "checkpoints/best.ckpt").write_bytes(b"weights\0")
    sum_files(tmp_path / "run", ["config.yaml", "environment.json", "confusion.csv", "checkpoints/best.ckpt"])
    for name, text in (("study/study.yaml", "data:\n  source: data\n"), ("mine/config.yaml", "of: my program\n")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def refused(message):
    return nullcontext() if message is None else pytest.raises(UserError, match=message)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("folder", "given", "message"),
    [
        ("run", {}, r"--output run is the folder of a run.* such as run/results\."),
        ("old", {}, "is the folder of a run"),
        ("study", {}, "is the folder of a run, a study"),
        ("run/evaluation", {"runs": [Path("run")]}, None),
        ("mine", {}, None),
        ("mine/config.yaml", {}, "is not a folder"),
        ("data/result", {"data": "data"}, r"as a class of its own .*Name another place with --output DIR\."),
        ("data/ant/result", {"data": "./data"}, "or as images of one"),
        ("data/result", {"runs": [Path("old")]}, "as a class of its own"),
        ("data/result", {"runs": [Path("run/model.safetensors"), Path("study")]}, "as a class of its own"),
        ("data/result", {"images": ["data/ant/0.png"]}, "as a class of its own"),
        ("data/result", {"images": ["data"]}, "as a class of its own"),
        ("data/result", {"images": ["-", "gone.png"]}, None),
        ("data/result", {"runs": [Path("hf:user/name"), Path("mine")], "data": "digits"}, None),
        ("parts/result", {"data": "parts"}, None),  # beside the part
        ("parts/result", {"images": ["parts"]}, None),
        ("parts/train/result", {"images": ["parts/train/ant"]}, "as a class of its own"),
        ("photos/result", {"images": ["photos", "photos/mine.png"]}, None),
        ("photos/trips", {"images": ["photos"]}, None),
        ("result", {"images": ["photos", "data"]}, None),
    ],
)
def test_folders(folder, given, message):
    with refused(message):
        check_folder("--output", Path(folder), **given)


def test_the_folder_of_an_earlier_call_is_no_class(there):
    shutil.rmtree(there / "data/cow")
    shutil.rmtree(there / "data/bee")
    for _ in range(2):
        check_folder("--output", there / "data/explanations", images=["data"])
        shutil.copytree(there / "data/ant", there / "data/explanations", dirs_exist_ok=True)


def test_images_that_lie_elsewhere_now_stop_nothing(there):
    (there / "data").rename(there / "moved")
    check_folder("--output", there / "data/result", runs=[there / "run", there / "study"])
    (there / "run/config.yaml").write_text("[")
    check_folder("--output", there / "result", runs=[there / "run"])


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("file", "given", "message"),
    [
        ("run/confusion.csv", {}, "is a file of .*run, which cannot be read without it. Name another file"),
        ("run/checkpoints/best.ckpt", {"text": False}, "is a file of .*run, which"),
        ("run/csham.sha256", {}, "is a file of"),
        ("run/summary.json", {}, "is a file of"),  # of a run that is not finished
        ("old/confusion.csv", {}, "is a file of"),
        ("study/study.yaml", {}, "is a file of"),
        ("photos/mine.png", {}, "exists and holds no text, as an image or weights"),
        ("photos/mine.png", {"text": False}, None),  # of an earlier call, as far as anyone knows
        ("mine/config.yaml", {}, None),
        ("mine/config.yaml", {"runs": [Path("mine/config.yaml")]}, "is what this command was given"),
        ("run/answers.csv", {}, None),
        ("run/more.csv", {}, None),
        ("data/answers.csv", {"runs": [Path("run")]}, None),  # is no image
        ("photos", {}, "is a folder. Name a file"),
        ("gone/answers.csv", {}, "Make it first"),
    ],
)
def test_files(file, given, message):
    with refused(message):
        check_output("--output", Path(file), **given)


@pytest.mark.usefixtures("there")
def test_files_in_folders_that_are_to_be_made():
    check_file("--output", Path("run/export/model.onnx"), runs=[Path("run")], data="data", images=["data"])
    check_file("--output", Path("data/ant/model.onnx"), data="data")  # lies in a class already, and is no image
    for given in ({"data": "data"}, {"runs": [Path("run")]}, {"images": ["data"]}):
        with pytest.raises(UserError, match="as a class of its own"):
            check_file("--output", Path("data/export/model.onnx"), **given)
    os.link("mine/config.yaml", "table.csv")
    with pytest.raises(UserError, match="is what this command was given"):
        check_file("--output", Path("table.csv"), data="mine/config.yaml:path,label")
