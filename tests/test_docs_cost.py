"""docs/cost.md does what it says."""

import re
import shlex
from pathlib import Path

import pytest

from csham.cli import main

PAGE = (Path(__file__).parent.parent / "docs" / "cost.md").read_text(encoding="utf-8")


def test_its_python_prints_what_it_says(capsys):
    [block] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "docs/cost.md", "exec"), {})
    shown = re.search(r"begins with\n\n(.*?)\n\n", PAGE, flags=re.DOTALL).group(1)
    expected = [line.strip() for line in shown.splitlines()]
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(expected)] == expected
    assert [line.split()[0] for line in lines[len(expected) :]] == ["plain", "csham"]


@pytest.mark.long
@pytest.mark.slow
def test_its_commands_run(tmp_path, monkeypatch, capsys):
    commands = re.findall(r"^    \$ csham (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cost.csv", "cost.json", "cost.png"]
