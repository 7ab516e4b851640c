"""The tables of gates' weights in the documentation are those of the rows in results/claim/gates.csv."""

import csv
import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parent.parent
TABLE = re.compile(r"<!-- gates (\S+) -->\n(.*?)<!-- /gates -->", flags=re.DOTALL)


@pytest.mark.parametrize(("page", "tables"), [("explain", 1), ("training", 2)])
def test_the_means_are_those_of_the_runs(page, tables):
    with (ROOT / "results/claim/gates.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    found = TABLE.findall((ROOT / f"docs/{page}.md").read_text(encoding="utf-8"))
    assert len(found) == tables
    for study, table in found:
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        for network, kind, *cells in rows:
            for stage, cell in zip(head[2:], cells, strict=True):
                weights = {"study": study, "network": network, "kind": kind, "stage": stage}
                these = [run for run in runs if weights.items() <= run.items()]
                mean, across, dead = (fmean(float(run[name]) for run in these) for name in ("mean", "across", "dead"))
                assert cell == f"{mean:.2f}, {across:.3f}, {dead:.0%}"
