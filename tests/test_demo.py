"""The demo, shortened: it goes through the user's commands and leaves its table and picture."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent.parent / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    settings = list(demo.SETTINGS)
    settings[settings.index("--epochs") + 1] = "1"
    monkeypatch.setattr(demo, "SETTINGS", [*settings, "--image-size", "16"])
    monkeypatch.setattr(demo, "SEEDS", (3,))
    demo.demo(tmp_path)
    out = capsys.readouterr().out
    for name in demo.VARIANTS:
        assert (tmp_path / f"{name.lower()}-seed3" / "summary.json").is_file()
        assert name in out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert str(tmp_path / "curves.png") in out
