"""The demo, shortened: it is one study, and ends with its report's path and what may be concluded."""

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.slow
def test_the_demo_ends_with_its_report_and_what_may_be_concluded(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent.parent / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    settings = list(demo.SETTINGS)
    settings[settings.index("--epochs") + 1] = "1"
    settings[settings.index("--jobs") + 1] = "1"
    monkeypatch.setattr(demo, "SETTINGS", [*settings, "--image-size", "16"])
    monkeypatch.setattr(demo, "GRID", [*demo.GRID[:-2], "--seeds", "3,"])
    assert demo.demo(tmp_path / "study") == 0
    out = capsys.readouterr().out
    for name in ("resnet14", "resnet14 + se", "resnet14 + csham (transfer)"):
        assert name in out
    page = tmp_path / "study" / "report" / "index.html"
    assert f"\nreport: {page}\n" in out
    assert "What may be concluded" in out.split(f"report: {page}")[1]
    assert "resnet14 + csham (transfer)" in page.read_text(encoding="utf-8")
