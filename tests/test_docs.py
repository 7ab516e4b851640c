"""The documentation does what it says: its Python runs, its commands end well."""

import re
import shlex
from pathlib import Path

import pytest

from csham.cli import main

ROOT = Path(__file__).parent.parent


def run_python(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.slow
def test_the_readmes_python_runs():
    names = run_python("README.md")
    assert names["logits"].shape == (2, 100)
    assert names["points"]


def test_the_attaching_pages_python_prints_what_it_says(capsys):
    run_python("docs/attaching.md")
    shown = re.search(r"    layer1\.0\.bn2 64 .*?\.\.\.", (ROOT / "docs/attaching.md").read_text(), flags=re.DOTALL)
    expected = [line.strip() for line in shown.group().splitlines()[:-1]]
    assert capsys.readouterr().out.splitlines()[: len(expected)] == expected


@pytest.mark.slow
def test_every_command_of_the_training_page_runs(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^    \$ csham (.*)$", (ROOT / "docs/training.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert "finished" in capsys.readouterr().err
