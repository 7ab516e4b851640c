"""docs/statistics.md does what it says, and its tables are those of benchmarks/data/verdict_errors.csv."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")


def measured(question):
    """The newest row of each kind."""
    with (ROOT / "benchmarks" / "data" / "verdict_errors.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["question"] == question]
    return {(r["noise"], r["of"], r["sd"], r["seeds"], r["how"]): float(r["percent"]) for r in rows}


def table(heading):
    """The cells of the table after a heading, by the first column."""
    lines = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_its_python_prints_what_it_says(capsys):
    [block] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(block, "docs/statistics.md", "exec"), {})
    shown = PAGE[PAGE.index("prints\n\n") :].splitlines()[2:]
    assert capsys.readouterr().out.splitlines() == [line.strip() for line in shown]


@pytest.mark.parametrize("start", ["normal", "heavy-tailed", "skewed", "a tenth", "count"])
def test_false_helps_are_as_measured(start):
    found = measured("false helps")
    noise = "4 wrong of 360 images" if start == "count" else start
    name = next(name for name, *_ in found if name.startswith(noise))
    [cells] = [cells for row, cells in table("| noise of a run |").items() if row.startswith(start)]
    assert cells == [f"{found[name, 'all networks', '', n, '']:.1f}" for n in ("3", "5", "10")]


@pytest.mark.parametrize("sd", ["0.1", "0.2", "0.3"])
def test_false_no_differences_are_as_measured(sd):
    found = measured("false no difference")
    expected = [
        "{:.1f} ({:.1f})".format(
            *(found["normal", "", sd, n, how] for how in ("verdict", "an interval within the margin"))
        )
        for n in ("3", "5", "10")
    ]
    assert table("| sd of a run, points |")[sd] == expected


def test_false_no_differences_over_groups_are_as_measured():
    found = measured("false no difference, pooled")
    expected = [
        "{:.1f} ({:.1f})".format(
            *(found["normal", "", "0.5", n, how] for how in ("verdict", "an interval within the margin"))
        )
        for n in ("5", "10")
    ]
    assert table("| sd of a difference, points |")["0.5"] == expected


def test_pooled_intervals_are_as_measured():
    found = {}
    for (_, _, _, seeds, how), percent in measured("pooled interval holds").items():
        groups, between, width = re.match(
            r"(\d+) groups, ([\d.]+) between them, half as wide as ([\d.]+)", how
        ).groups()
        found[groups, float(between), seeds] = f"{percent:.0f}%, ±{width}"
    expected = {n: [found[n, between, "5"] for between in (0.0, 0.3)] for n in ("2", "3", "5", "7", "20")}
    assert {n: [cell.removeprefix("holds ") for cell in cells] for n, cells in table("| groups |").items()} == expected
    assert min(float(cell.partition("%")[0]) for cell in found.values()) >= 95


def test_coverage_is_as_measured():
    found = measured("interval holds")
    rows = {
        f"{how}, {noise.partition(' ')[0]}": [f"{found[noise, '', '', n, how]:.0f}%" for n in ("3", "5", "10", "20")]
        for noise in ("normal", "skewed (lognormal)")
        for how in ("Student-t", "BCa")
    }
    assert table("| 95% interval, noise of a run |") == rows
