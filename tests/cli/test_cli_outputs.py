"""Commands that only read a run and images leave both as they were, wherever their results are to go."""

import hashlib
import shutil

import pytest

AMONG = "as a class of its own or as images of one"
OWN = "is the folder of a run"
FILE = "which cannot be read without it"


@pytest.fixture(scope="module")
def given(finished, write_images, tmp_path_factory):
    """The folder of a run, and of an image folder that is not the run's."""
    place = tmp_path_factory.mktemp("given")
    shutil.copytree(finished, place / "run")
    write_images(place / "photos", count=1)
    return place


def contents(folder):
    """What is in a folder; two of them are compared."""
    return {
        path.relative_to(folder): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate run --output run", OWN),
        ("evaluate run photos --output photos/result", AMONG),
        ("explain run photos/ant/0.png --output run", OWN),
        ("explain run ant/0.png", f"{AMONG}. Name another place with --output DIR."),
        ("explain run .", AMONG),
        ("gates run --output run", OWN),
        ("gates run --data photos --output photos/page", AMONG),
        ("share run run", OWN),
        ("export run photos --output photos/export/m.onnx", AMONG),
        ("export run --images photos --format safetensors --output photos/export/m.safetensors", AMONG),
        ("export run --format safetensors --output run --force", FILE),
        ("export run --format onnx --output run/checkpoints/best.ckpt --force", FILE),
        ("predict run photos --output photos/ant/0.png", "holds no text"),
        ("predict run photos --output run/model.safetensors", FILE),
        ("predict run photos --output run/summary.json", FILE),
        ("profile --csv run/metrics.csv", FILE),
        ("profile --plot run/confusion.csv", FILE),
        ("report run run --output both --markdown run/confusion.csv", FILE),
        ("report run --output run", OWN),
    ],
)
def test_what_was_given_stays(csham, given, monkeypatch, words, message):
    before = contents(given)
    words = words.split()
    if words[0] == "explain" and "--output" not in words:  # by default into the current folder
        monkeypatch.chdir(given / "photos")
        words[1] = given / "run"
    else:
        monkeypatch.chdir(given)
    code, out, err = csham(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert contents(given) == before


def test_nor_do_results_go_among_the_images_of_the_run(csham, finished, images):
    before = contents(images)
    for words in (
        ["evaluate", finished, "--output", images / "result"],
        ["explain", finished, "--samples", "2", "--output", images / "result"],
        ["gates", finished, "--output", images / "result"],
        ["share", finished, images / "result"],
        ["export", finished, "--output", images / "result" / "model.onnx"],
    ):
        code, _, err = csham(*words)
        assert code == 2, words
        assert AMONG in err
    assert contents(images) == before
