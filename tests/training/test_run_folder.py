import csv
import json
import os
import random

import pytest

from csham.errors import UserError
from csham.share import model_card
from csham.training.config import resolve
from csham.training.run_folder import RunFolder

CONFIG = resolve({"data": "digits"})


def create(folder, save=lambda path: path.write_bytes(b"checkpoint")):
    folder.create(CONFIG, {"seed": 0}, save)


def test_a_new_folder_can_be_read_back(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one")
    create(folder)
    assert folder.read_config() == CONFIG
    assert json.loads((folder.path / "environment.json").read_text()) == {"seed": 0}
    assert folder.last.read_bytes() == b"checkpoint"
    assert [path.name for path in folder.path.parent.iterdir()] == ["one"]


def test_nothing_is_left_when_the_first_checkpoint_fails(tmp_path):
    def fail(path):
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(OSError, match="No space"):
        create(RunFolder(tmp_path / "one"), fail)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "one").mkdir()
    create(RunFolder(tmp_path / "one"))


def test_a_folder_that_holds_something_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "one")
    create(folder)
    with pytest.raises(UserError, match=r"exists already\. csham train --resume"):
        folder.check_free()
    with pytest.raises(UserError, match="not an empty folder"):
        RunFolder(tmp_path).check_free()


def test_a_place_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file" / "run").check_free()


def test_a_path_that_libraries_cannot_open_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must be UTF-8, .* --run DIR"):
        RunFolder(tmp_path / os.fsdecode(b"caf\xe9") / "run").check_free()


def test_a_run_among_its_images_is_refused(tmp_path, write_images):
    data = write_images(tmp_path / "data", count=1)
    with pytest.raises(UserError, match=r"among the images of .* --run DIR"):
        RunFolder(data / "runs" / "one").check_free(str(data))


def test_what_is_no_run_is_refused_and_runs_nearby_are_named(tmp_path):
    create(RunFolder(tmp_path / "one"))
    with pytest.raises(UserError, match=r"no run folder .*Runs there: .*one"):
        RunFolder(tmp_path / "two").check_run()
    with pytest.raises(UserError, match=r"has no config.yaml.*one"):
        RunFolder(tmp_path).check_run()


def test_class_names_with_commas_and_quotes_survive(tmp_path):
    names = ["a,b", 'say "c"', "ä\nö"]
    RunFolder(tmp_path).write_confusion(names, [[1, 0, 0], [0, 2, 0], [0, 0, 3]])
    with (tmp_path / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["true class", *names]
    assert [row[0] for row in rows[1:]] == names


def test_the_second_of_two_that_begin_a_run_in_one_folder_is_told(tmp_path):
    folder = RunFolder(tmp_path / "one")

    def slow(path):
        path.write_bytes(b"first")
        create(RunFolder(tmp_path / "one"))

    with pytest.raises(UserError, match=r"another process has begun a run in .*one in the meantime"):
        create(folder, slow)
    assert folder.last.read_bytes() == b"checkpoint"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_json_holds_no_numbers_that_json_does_not_have(tmp_path):
    folder = RunFolder(tmp_path / "one")
    create(folder)
    with pytest.raises(ValueError, match="JSON"):
        folder.write_json("summary.json", {"loss": float("nan")})
    assert not folder.finished


def spoiled(content, draw):
    """Change a file's content as a disk, an editor or somebody hostile would."""
    other, place = bytearray(content), draw.randrange(len(content))
    words = [
        b"null",
        b"1e999",
        b"-1",
        b"[]",
        b'"x"',
        b"9" * 5000,
        b"NaN",
        b"\x00",
        b"\xff",
        b"[" * 5000,
        b"*a",
        b"!!int ",
    ]
    kind = draw.choice(["bit", "cut", "more", "word", "copy"])
    if kind == "bit":
        other[place] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del other[place:]
    elif kind == "copy":
        start = draw.randrange(len(content))
        other[place : place + 20] = content[start : start + 20]
    else:
        other[place : place + (draw.randrange(12) if kind == "word" else 0)] = draw.choice(words)
    return bytes(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "summary.json", "metrics.csv", "confusion.csv"])
def test_whatever_is_in_a_file_of_an_unlisted_folder_it_is_read_or_refused_by_its_name(
    finished, copy_unlisted, tmp_path, name
):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    path, draw = run.path / name, random.Random(name)
    content, unnamed = path.read_bytes(), []
    for _ in range(200):
        path.write_bytes(spoiled(content, draw))
        try:
            run.read_config()
            run.read_summary()
            run.read_json("environment.json")
            model_card(run, weights="last", license="mit")
        except UserError as err:
            if str(path) not in str(err) and "unknown backbone" not in str(err):
                unnamed.append(str(err))
    assert unnamed == []
