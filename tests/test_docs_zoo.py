"""The tables of results are what the commands give, and adding a network is one step."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csham.cli import main
from csham.inference.zoo import TABLE

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import zoo

        yield zoo
        del sys.modules["zoo"]


def test_the_packages_table_is_made_of_the_results(capsys):
    assert main(["list", "results", "--json", "--folder", str(ROOT / "results")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(TABLE.read_text(encoding="utf-8")), (
        "results/ has changed: python scripts/zoo.py"
    )


@pytest.mark.parametrize("page", ["results/README.md", "docs/zoo.md"])
def test_the_pages_have_the_tables_that_the_commands_print(page, scripts, monkeypatch, capsys):
    def table(*words):
        capsys.readouterr()
        assert main(["list", *words]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr(scripts, "table", table)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert scripts.with_tables(text, scripts.PAGES[page]) == text, "python scripts/zoo.py writes them anew"


@pytest.mark.slow
def test_a_network_is_added_in_one_step(tmp_path):
    """In a copy of what the step reads and writes."""
    for part in ("src", "scripts", "results", "docs/zoo.md"):
        source, place = ROOT / part, tmp_path / "repository" / part
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
    home, run = tmp_path / "repository", tmp_path / "run"
    words = f"train digits --backbone lenet5 --recipe quick --epochs 1 --no-compile --quiet --device cpu --run {run}"
    assert main(words.split()) == 0
    step = [sys.executable, str(home / "scripts/zoo.py"), str(run), "lenet5-digits"]
    environment = {"PYTHONPATH": str(home / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(step, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    top1 = json.loads((run / "summary.json").read_text())["top1"]
    rows = {row["result"]: row for row in json.loads((home / "src/csham/zoo/results.json").read_text())}
    assert rows["zoo/lenet5-digits"]["top1"] == top1
    assert "| zoo:lenet5-digits | lenet5, last weights |" in (home / "docs/zoo.md").read_text(encoding="utf-8")
    assert "| zoo/lenet5-digits | lenet5 | none |" in (home / "results/README.md").read_text(encoding="utf-8")
    for folder in ("results/zoo/lenet5-digits", "src/csham/zoo/lenet5-digits"):
        texts = [path.read_bytes() for path in (home / folder).iterdir()]
        assert not [text for text in texts if str(tmp_path).encode() in text]
    again = subprocess.run(step, capture_output=True, text=True, env=environment, check=False)
    assert again.returncode != 0
    assert "exists already" in again.stderr
