"""The documentation does what it says: its Python runs, its commands end well."""

import re
import shlex
from pathlib import Path

import pytest

from csham.cli import main

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_readmes_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        names = {}
        exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 100)
    assert names["points"]


@pytest.mark.slow
def test_every_command_of_the_training_page_runs(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^    \$ csham (.*)$", (ROOT / "docs/training.md").read_text(encoding="utf-8"), flags=re.M)
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert "finished" in capsys.readouterr().err
