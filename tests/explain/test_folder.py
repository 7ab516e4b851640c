import os
import subprocess
import sys

import pytest

CODE = "import os, sys; from csham.explain.folder import _stems; os.write(1, os.fsencode(next(_stems(sys.argv[1]))))"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}], ids=["C", "UTF-8"])
@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("日image.jpg".encode(), "日image".encode()),
        (b"caf\xe9.png", b"caf"),  # no UTF-8
        (b"x" + "日".encode() * 61 + b".png", "日".encode() * 60),
        (b"x" + "日".encode() * 60 + b"xy.png", "日".encode() * 59 + b"xy"),  # no half of a character
    ],
)
def test_pictures_are_called_as_images_in_any_locale(name, stem, locale):
    words = [sys.executable, "-c", CODE, name]
    done = subprocess.run(words, env=os.environ | locale, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (stem, b"")
