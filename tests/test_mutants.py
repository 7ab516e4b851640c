"""scripts/mutants looks for files and explanations that are there. It needs nothing installed for that."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mutants(monkeypatch):
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutants", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TREE", ROOT)
    return module


def test_every_room_has_the_files_it_names_and_tests(mutants):
    for room in mutants.ROOMS:
        assert mutants.files_of(room)
        assert list((ROOT / "tests" / room).rglob("test_*.py"))


def test_a_name_that_nothing_has_ends_it(mutants, monkeypatch):
    monkeypatch.setitem(mutants.ROOMS, "training", "metrics schedule")
    with pytest.raises(SystemExit, match=r"src/csham/training has no schedule: correct ROOMS in mutants\.py"):
        mutants.sample("training", 1, 0)


def test_what_is_explained_is_there(mutants):
    assert set(mutants.explained().values()) == {"same program", "killed by a slow test"}


@pytest.mark.parametrize(
    ("where", "before"),
    [("_nobody", "return end, branch"), ("_first", "if least > MOST_SEEDS or not enough:"), ("_last", "return high")],
)
def test_an_entry_whose_code_is_gone_ends_it(mutants, monkeypatch, tmp_path, where, before):
    known = tmp_path / "known.toml"
    known.write_text(f'[[same]]\nwhere = "{where}"\nbefore = "{before}"\nafter = "pass"\nwhy = "No."\n')
    monkeypatch.setattr(mutants, "KNOWN", known)
    with pytest.raises(SystemExit, match=rf"known\.toml has entries whose code is gone: {where}\. Remove them"):
        mutants.explained()


def test_functions_are_known_by_the_names_around_them(mutants):
    code = (
        "A = 1\nclass One:\n    def two(self):\n        def three():\n            return (4,\n                    5)\n"
    )
    found = dict(mutants.definitions(code))
    assert list(found) == ["", "One", "One.two", "One.two.three"]
    assert "return (4, 5)" in found["One.two.three"]
