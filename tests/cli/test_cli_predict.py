import csv
import io
import json
import os
import sys

import pytest
from rich.console import Console

from csham.cli import main
from csham.cli.predict import csv_lines, json_lines, table_lines
from csham.data import BadFile
from csham.inference import Prediction
from csham.training.progress import BarProgress
from csham.training.run_folder import RunFolder


@pytest.fixture
def photos(images, tmp_path):
    """Five images, one of them a bee, and one bad file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes((images / "ant" / f"{number}.png").read_bytes())
    (folder / "more").mkdir()
    (folder / "more/bee.png").write_bytes((images / "bee/0.png").read_bytes())
    (folder / "text.png").write_text("no image")
    return folder


@pytest.fixture
def standard_input():
    """Function that puts bytes on this process's standard input."""
    kept = os.dup(0)

    def put(content):
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield put
    os.dup2(kept, 0)
    os.close(kept)


def predicted(line):
    return {answer["class"]: answer["probability"] for answer in json.loads(line)["predictions"]}


def test_table_has_a_row_for_each_class_and_bad_files_are_listed(csham, finished, photos):
    code, out, err = csham("predict", finished, photos, "--top-k", 2)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["class", "probability", "image"]
    assert [row[2] for row in rows[1:9:2]] == [f"{photos}/{number}.png" for number in range(4)]
    assert [len(row) for row in rows[1:9]] == [3, 2] * 4
    assert rows[9][0] == "bee"
    assert rows[9][2] == f"{photos}/more/bee.png"
    assert rows[11] == ["-", f"{photos}/text.png:", "not", "an", "image", "that", "Pillow", "can", "read"]
    assert f"1 of 6 images could not be read:\n  {photos}/text.png: not an image that Pillow can read\n" in err
    assert "5 images in " in err


def test_json_lines(csham, finished, photos):
    code, out, err = csham("predict", finished, photos, "--json", "--quiet")
    assert code == 0
    lines = out.splitlines()
    assert [json.loads(line)["path"] for line in lines][4:] == [f"{photos}/more/bee.png", f"{photos}/text.png"]
    assert json.loads(lines[5]) == {"path": f"{photos}/text.png", "error": "not an image that Pillow can read"}
    answers = predicted(lines[4])
    assert sorted(answers) == ["ant", "bee", "cow"]
    assert sum(answers.values()) == pytest.approx(1, abs=1e-5)
    assert list(answers.values()) == sorted(answers.values(), reverse=True)
    assert err.splitlines()[0] == "1 of 6 images could not be read:"  # quiet is without progress, not without this
    assert "images/s" not in err


def test_csv_says_the_same(csham, finished, photos):
    wanted = csham("predict", finished, photos, "--json", "--weights", "last", "--batch-size", 1)[1]
    code, out, _ = csham("predict", finished, photos, "--csv", "--weights", "last", "--top-k", 7)
    assert code == 0
    assert out.splitlines()[0] == "path,class_1,probability_1,class_2,probability_2,class_3,probability_3,error"
    rows = list(csv.DictReader(io.StringIO(out)))
    for row, line in zip(rows[:5], wanted.splitlines(), strict=False):
        answers = {row[f"class_{rank}"]: float(row[f"probability_{rank}"]) for rank in (1, 2, 3)}
        assert answers == pytest.approx(predicted(line), rel=1e-4)
        assert row["error"] == ""
    assert list(rows[5].values()) == [f"{photos}/text.png", *[""] * 6, "not an image that Pillow can read"]


def test_images_below_the_threshold_get_no_answer_in_any_form(csham, finished, photos):
    found = [json.loads(line) for line in csham("predict", finished, photos, "--json")[1].splitlines()]
    first = {line["path"]: line["predictions"][0]["probability"] for line in found if "predictions" in line}
    threshold = sum(sorted(first.values())[1:3]) / 2  # between two, which another rounding does not change
    words = ["predict", finished, photos, "--threshold", threshold, "--top-k", 2]
    code, out, err = csham(*words, "--json")
    assert code == 0
    assert f"not sure of 2 of them: no class has a probability of {threshold:g} or more" in err
    unsure = [path for path in first if first[path] < threshold]
    for line in map(json.loads, out.splitlines()):
        if line["path"] in unsure:
            assert line == {"path": line["path"], "predictions": [], "not_sure": pytest.approx(first[line["path"]])}
        else:
            assert "not_sure" not in line
    for row in csv.DictReader(io.StringIO(csham(*words, "--csv")[1])):
        assert (row["class_1"] == "") == (row["path"] in unsure or row["error"] != "")
        assert (row["probability_2"] == "") == (row["class_1"] == "")
        if row["path"] in unsure:
            assert float(row["probability_1"]) == pytest.approx(first[row["path"]])
            assert row["error"] == ""
    table = csham(*words)[1].splitlines()
    assert sorted(line.split()[-1] for line in table if line.startswith("not sure ")) == sorted(unsure)
    assert len(table) == 1 + 2 * 3 + 2 + 1
    # An answer to none is an answer: the exit code is about files that were read.
    code, out, err = csham("predict", finished, photos / "0.png", "--threshold", 1, "--json")
    assert code == 0
    assert json.loads(out)["predictions"] == []
    assert "not sure of 1 of them" in err


def test_views_are_averaged_and_said(csham, finished, photos):
    code, out, err = csham("predict", finished, photos / "0.png", "--tta", "--json")
    assert code == 0
    assert "test-time augmentation: mean probabilities of 2 views: the image and its mirror image" in err
    one = predicted(csham("predict", finished, photos / "0.png", "--json")[1])
    assert predicted(out) != one
    code, out, err = csham("predict", finished / "model.safetensors", photos / "0.png", "--tta")
    assert (code, out) == (2, "")
    assert "only where the run folder says that training mirrors" in err


def test_weights_alone_or_shared_suffice(csham, finished, photos, tmp_path):
    def answer(source, *words):
        code, out, err = csham("predict", source, photos / "0.png", "--json", "--device", "cpu", *words)
        assert code == 0, err
        return out, err

    last, said = answer(finished, "--precision", "fp32")
    assert "resnet20, last epoch (1)" in said
    assert csham("share", finished, tmp_path / "shared")[0] == 0
    # Weights without a run are asked in float32, a run in its own precision.
    assert answer(finished / "model.safetensors")[0] == answer(tmp_path / "shared")[0] == last
    own = RunFolder(finished).read_config().precision
    assert answer(finished)[0] == answer(finished, "--precision", own)[0]


def test_output_appears_whole_or_not_at_all(csham, finished, photos, tmp_path):
    target = tmp_path / "answers.csv"
    target.write_text("old")
    bad = photos / "text.png"
    code, out, err = csham("predict", finished, bad, tmp_path / "photos/text.png", "--csv", "--output", target)
    assert (code, out, target.read_text()) == (2, "", "old")
    assert "error: none of the images could be read." in err
    assert f"  {bad}: not an image" in err
    code, out, err = csham("predict", finished, photos, "--csv", "--output", target)
    assert (code, out) == (0, "")
    assert len(target.read_text().splitlines()) == 7
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "answers.csv"}


def test_paths_from_standard_input(csham, finished, photos, standard_input):
    standard_input(f"{photos}/0.png\nno such.png\n{photos}/more\n".encode())
    code, out, _ = csham("predict", finished, "-", "--json")
    assert code == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == [
        f"{photos}/0.png",
        "no such.png",
        f"{photos}/more/bee.png",
    ]
    standard_input(b"")
    code, out, err = csham("predict", finished, "-", "--csv")
    assert (code, out) == (2, "")
    assert "error: standard input named no images." in err


def test_the_oddest_names_stay_whole(csham, finished, images, tmp_path, standard_input):
    name = b'a, "b"\n\xe2\x80\xa8\xff;=\x1b[31m\xc3\xa4.png'
    path = os.fsencode(tmp_path) + b"/" + name
    try:
        with open(path, "wb") as file:  # noqa: PTH123 - bytes
            file.write((images / "cow/0.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    standard_input(path + b"\0" + path + b"\0")
    code, out, _ = csham("predict", finished, "-", "--null", "--json")
    assert code == 0
    assert [os.fsencode(json.loads(line)["path"]) for line in out.splitlines()] == [path, path]
    assert csham("predict", finished, os.fsdecode(path), "--csv", "--output", tmp_path / "x.csv")[0] == 0
    text = (tmp_path / "x.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [os.fsencode(row["path"]) for row in rows] == [path]
    code, out, _ = csham("predict", finished, os.fsdecode(path), "--top-k", 1)
    assert out.splitlines()[1].endswith(r'a, "b"\n\u2028\udcff;=\x1b[31mä.png')


def test_a_reader_that_leaves_ends_it_quietly(finished, photos, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writing, "w"))
        words = ["predict", str(finished), str(photos), "--csv", "--quiet"]
        assert main(words) == 1
        patch.setattr(sys, "stderr", sys.__stderr__)
    assert capfd.readouterr().err == ""


def test_on_a_terminal_answers_scroll_by_above_the_bar(csham, finished, photos, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr("csham.cli.predict.create_progress", lambda quiet: BarProgress(console))
    monkeypatch.setattr("csham.cli.predict._SECONDS_BETWEEN_STEPS", 0)
    # The word for a terminal, on what pytest captures with.
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    code, out, _ = csham("predict", finished, photos, "--json")
    assert (code, out) == (0, "")
    shown = console.file.getvalue()
    assert f'{{"path": "{photos}/more/bee.png", "predictions": [{{"class": "bee", "probability": ' in shown
    assert "of 6 images" in shown
    monkeypatch.undo()


def test_long_lists_of_bad_files_are_counted(csham, finished, photos, monkeypatch):
    monkeypatch.setattr("csham.cli.predict._BAD_FILES_LISTED", 1)
    _, _, err = csham("predict", finished, photos / "0.png", *[photos / "text.png"] * 3)
    assert "3 of 4 images could not be read:" in err
    assert "and 2 more" in err
    assert err.count("not an image") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "there is no file or folder 'nothing'"),
        (["*.jpg"], "the pattern matched nothing"),
        (["{photos}", "--top-k", "0"], "--top-k must be at least 1"),
        (["{photos}", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{photos}", "--weights", "bst"], "Did you mean 'best'"),
        (["{photos}", "--precision", "fp61"], "unknown precision"),
        (["{photos}", "--json", "--csv"], "exclude each other"),
        (["{photos}", "--output", "{photos}"], "is a folder. Name a file"),
        (["{photos}", "--output", "/dev/null"], "is not a file"),
        (["{photos}", "--output", "{photos}/no/x.csv"], "there is no folder"),
        (["{photos}", "--device", "cuda:77"], "cuda"),
        (["{photos}", "--threshold", "60"], "the threshold is a probability, above 0 and at most 1, got 60. For 60%"),
    ],
)
def test_what_cannot_work_is_said(csham, finished, photos, words, message):
    code, out, err = csham("predict", finished, *(word.format(photos=photos) for word in words))
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_what_is_no_run_is_said(csham, finished, photos, tmp_path):
    code, _, err = csham("predict", finished.parent / "finised", photos)
    assert code == 2
    assert f"there is no run folder {finished.parent / 'finised'}. Runs there: {finished}" in err
    assert "is not a run folder" in csham("predict", tmp_path, photos)[2]


def test_lines_of_any_class_name():
    names = ['a "b", c', "two\nlines", "\udcff", "\ud800", "猫", "two\nlines"]
    result = Prediction("x.png", names, [0.5, 0.25, 0.125, 1e-9, 0.0, 0.0])
    assert [answer["class"] for answer in json.loads(json_lines().of(result))["predictions"]] == names
    (row,) = csv.reader(io.StringIO(csv_lines(6).of(result), newline=""))
    assert row[1:-1:2] == names
    assert [float(cell) for cell in row[2::2]] == result.probabilities
    lines = table_lines(names).of(result).splitlines()
    assert len(lines) == 6
    assert lines[0] == 'a "b", c         50.00%  x.png'
    assert lines[4] == "猫                0.00%"  # two columns wide
    bad = table_lines(names).of(BadFile("a\nb.png", "truncated"))
    assert bad.split() == ["-", r"a\nb.png:", "truncated"]
