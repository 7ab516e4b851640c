"""What is refused before anything is served."""

import pytest

from csham.app import serve as serving
from csham.errors import UserError


def test_without_gradio_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"csham\[app\]"):
        serving.check_packages()


@pytest.mark.parametrize(("there", "enough"), [("5.49.1", False), ("6.9.0", False), ("6.27.0", True), ("7.0b1", True)])
def test_a_gradio_that_is_too_old_is_named(monkeypatch, there, enough):
    monkeypatch.setattr(serving, "find_spec", lambda name: object())
    monkeypatch.setattr(serving, "version", lambda name: there)
    if enough:
        serving.check_packages()
        return
    with pytest.raises(UserError, match=rf"needs gradio 6\.27 or later, {there} is installed"):
        serving.check_packages()
