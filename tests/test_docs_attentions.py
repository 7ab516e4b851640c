"""The page of the attentions: its table is the command's, and its Python runs."""

import re
from pathlib import Path

import torch

from csham.cli import main

PAGE = (Path(__file__).parent.parent / "docs/attentions.md").read_text(encoding="utf-8")


def test_the_table_is_what_the_command_prints(capsys):
    assert main(["list", "attentions", "--markdown"]) == 0
    shown = re.search(r"<!-- attentions -->\n(.*)<!-- /attentions -->", PAGE, flags=re.DOTALL).group(1)
    message = "put the output of `csham list attentions --markdown` between the page's comments"
    assert shown == capsys.readouterr().out, message


def test_the_python_runs_and_prints_what_it_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/attentions.md", "exec"), names)
    shown = re.search(r"^    (\[\('channel'.*)$", PAGE, flags=re.M).group(1)
    assert capsys.readouterr().out.splitlines() == [shown]
    assert names["y"].shape == (2, 64, 14, 14)
    assert torch.equal(names["y"], names["x"] * 0.5)
