"""zoo:NAME wherever a run or a shared folder is taken."""

import json

import numpy as np
import pytest
from PIL import Image

NAME = "zoo:resnet14-digits-csham-transfer"


@pytest.fixture
def digit(tmp_path):
    """A handwritten seven of scikit-learn's, as a file."""
    from sklearn.datasets import load_digits

    pixels = (load_digits().images[7] * 15.9).astype(np.uint8)
    Image.fromarray(pixels).resize((32, 32)).save(tmp_path / "seven.png")
    return tmp_path / "seven.png"


def test_predict(csham, digit):
    code, out, err = csham("predict", NAME, digit, "--json", "--device", "cpu")
    assert code == 0, err
    assert json.loads(out)["predictions"][0]["class"] == "7"
    assert "resnet14 + csham (transfer), last epoch" in err


def test_evaluate(csham, tmp_path, images):
    code, out, err = csham("evaluate", NAME, "digits", "--json", "--device", "cpu")
    assert code == 0, err
    found = json.loads(out)
    assert (found["part"], found["images"], found["weights"]) == ("test", 359, "last")
    assert found["top1"] > 90
    code, _, err = csham("evaluate", NAME)
    assert code == 2
    assert "Name a dataset with the same classes" in err
    code, _, err = csham("evaluate", NAME, "digits", "--part", "validation")
    assert code == 2
    assert "--part test or all" in err
    code, _, err = csham("evaluate", NAME, images)
    assert code == 2
    assert "the classes of" in err


def test_explain(csham, digit, tmp_path):
    code, _, err = csham("explain", NAME, digit, "--output", tmp_path / "pictures", "--quiet")
    assert code == 0, err
    assert (tmp_path / "pictures" / "seven.png").is_file()


@pytest.mark.slow
def test_export_lands_here(csham, digit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = csham("export", NAME, "--format", "pt2", "--images", digit.parent, "--quiet")
    assert code == 0, err
    assert (tmp_path / "export" / "model.pt2").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "zoo:resnet15-digits", "x.png"],
        ["evaluate", "zoo:resnet15-digits", "digits"],
        ["explain", "zoo:resnet15-digits", "x.png"],
        ["export", "zoo:resnet15-digits"],
        ["app", "zoo:resnet15-digits"],
    ],
)
def test_an_unknown_name_is_answered_with_those_there_are(csham, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("x.png")
    code, _, err = csham(*words)
    assert code == 2
    assert "unknown network of the zoo 'resnet15-digits'" in err
    assert "resnet14-digits" in err
    assert list(tmp_path.iterdir()) == [tmp_path / "x.png"]
