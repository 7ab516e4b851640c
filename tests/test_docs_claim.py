"""What README says of the claim is what the tables of docs/claim say."""

import csv
import json
import re
from pathlib import Path

import pytest

from csham.cli import main

ROOT = Path(__file__).parent.parent
TABLES = ROOT / "docs/claim/tables"
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
STUDIES = ("cifar100-resnet20-10", "caltech101-resnet20-25")
NETWORKS = {
    "plain": "none",
    "SE": "se",
    "ECA": "eca",
    "CBAM": "cbam",
    "CSHAM `sequential`": "csham",
    "CSHAM `transfer`": "csham (transfer)",
}


def rows(name):
    with (TABLES / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {(row["group"], row["variant"]): row for row in csv.DictReader(file)}


def interval(mean, low, high):
    return f"{float(mean):+.2f} ({float(low):+.2f} to {float(high):+.2f})"


def test_the_table():
    means, verdicts = rows("variants"), rows("verdicts")
    found = dict(re.findall(rf"^\| ({'|'.join(map(re.escape, NETWORKS))}) \| (\d\d\.\d\d .*) \|$", README, flags=re.M))
    assert list(found) == list(NETWORKS)
    for name, line in found.items():
        expected = []
        for study in STUDIES:
            mean = means[study, NETWORKS[name]]
            expected.append(f"{float(mean['mean']):.2f} ± {float(mean['deviation']):.2f}")
            one = verdicts.get((study, NETWORKS[name]))
            expected.append("" if one is None else interval(one["difference"], one["t_low"], one["t_high"]))
        assert [cell.strip() for cell in line.split(" |")] == expected


@pytest.mark.parametrize(
    ("baseline", "verdicts"),
    [
        ("cbam", ["helps", "helps"]),
        ("se", ["helps", "cannot tell yet"]),
        ("csham", ["no difference worth having", "cannot tell yet"]),
        ("eca", ["cannot tell yet", "cannot tell yet"]),
    ],
)
def test_transfer_against_the_others(capsys, baseline, verdicts):
    words = "--metric value --group group --variant variant --json --baseline"
    assert main(["verdict", str(TABLES / "runs.csv"), *words.split(), baseline]) == 0
    (metric,) = json.loads(capsys.readouterr().out)["metrics"]
    found = {one["group"]: one for one in metric["comparisons"] if one["variant"] == "csham (transfer)"}
    assert [found[study]["verdict"] for study in STUDIES] == verdicts
    prose = " ".join(README.split())
    for one in found.values():
        assert (interval(one["mean"], *one["t_interval"]) in prose) == (one["verdict"] != "cannot tell yet")
