"""docs/kernels.md does what it says, and its tables are those of the rows in benchmarks/data."""

import copy
import csv
import re
import shlex
from pathlib import Path

import pytest
import torch

from csham.cli import main

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")


def test_its_python_runs(cpu_kernels, capsys):
    [block] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "docs/kernels.md", "exec"), {})
    assert "kernels" in capsys.readouterr().out


def test_its_command_runs(monkeypatch, capsys):
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    commands = re.findall(r"^    \$ csham (.*)$", PAGE, flags=re.MULTILINE)
    assert commands == ["doctor"]
    assert main(shlex.split(commands[0])) == 0
    assert "asked for by name" in capsys.readouterr().out


def test_its_benchmarks_take_these_options(benchmark_script):
    commands = re.findall(r"^    python benchmarks/(\w+)\.py(.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == 7
    for name, options in commands:
        benchmark_script(name)._parser().parse_args(shlex.split(options))


def test_its_tables_are_made_from_the_rows(benchmark_script):
    figure = benchmark_script("attention_figure")
    page = PAGE
    for name, table in figure.tables().items():
        page = figure.with_table(page, name, table)
    assert page == PAGE, "run `python benchmarks/attention_figure.py --write`"


def test_its_launches_are_those_of_today(benchmark_script):
    pytest.importorskip("triton", reason="Triton is not installed")
    script = benchmark_script("gpu_compile")
    for layout in ("contiguous", "channels_last"):
        found = script.launches_of((64, 256, 56, 56), torch.bfloat16, layout == "channels_last")
        [table] = re.findall(rf"^\| 64, 256, 56, 56 bfloat16, {layout} .*?\n\n", PAGE, flags=re.M | re.S)
        names = re.findall(r"^\| `(\S+)` \| (\w+) \|", table, flags=re.MULTILINE)
        assert names == [(launch.name, launch.part) for launch in found], "run benchmarks/gpu_compile.py"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--memory"]], ids=["times", "memory"])
def test_attention_costs_become_rows_a_table_and_a_picture(options, benchmark_script, monkeypatch, tmp_path, capsys):
    record, script, figure = map(benchmark_script, ("record", "attention_cost", "attention_figure"))
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    monkeypatch.setattr(record, "DATA", tmp_path)
    small = "--shapes 2x8x8x8 --layouts channels_last --eager --rounds 2 --threads 1 --glibc-defaults"
    script.main([*shlex.split(small), *options])
    [path] = tmp_path.glob("*.csv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if options:
            assert float(row["kept_maps"]) >= 1  # the map itself
        else:
            assert float(row["share_of_floor"]) * float(row["copies"]) == pytest.approx(
                float(row["floor_copies"]), rel=1e-3
            )
            row["retained"] = "True"
    if not options:
        figure.draw(tmp_path / "picture.png", rows)
        assert (tmp_path / "picture.png").stat().st_size > 10_000
        table = figure._cost_table([row for row in rows if row["dtype"] == "float32"], "float32")
        assert [line.count("|") for line in table.splitlines()] == [3] * 7
    else:
        assert "| ECA, timm |" in figure.tables()["attention memory"]


def test_wrong_kernels_are_not_timed(benchmark_script, monkeypatch):
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    cost, contenders = map(benchmark_script, ("attention_cost", "contenders"))
    device, setting = torch.device("cpu"), ((2, 8, 8, 8), "float32", "contiguous")
    [found] = contenders.contenders(["csham"], setting[0], "reference", compiled=False, device=device)
    oracle = contenders.Plain(copy.deepcopy(found.module), contenders._hybrid)
    contender = contenders.Contender("csham", "cpu", False, found.module, oracle)
    maps = cost.Maps(setting, device)
    cost.check(contender, contender.module, maps, setting)
    with pytest.raises(SystemExit, match="differs from the definition"):
        cost.check(contender, lambda x: 1.001 * contender.module(x), maps, setting)
