"""Add a trained network to those that come with the package, and write the tables of results anew.

python scripts/zoo.py RUN NAME [--license apache-2.0]    the run becomes zoo:NAME, its records results/zoo/NAME
python scripts/zoo.py                                    the tables alone, after results/ has changed
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from csham.errors import UserError
from csham.files import SUMS
from csham.inference.zoo import TABLE, ZOO
from csham.share import share
from csham.study.record import without_places, words_without_places
from csham.training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = {"results/README.md": ["results"], "docs/zoo.md": ["zoo", "results"]}
"""The pages with tables, and which each has."""

END = "<!-- end -->"
RECORDS = ("config.yaml", "environment.json", "metrics.csv", "confusion.csv", "summary.json", SUMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--license", default="apache-2.0")
    given = parser.parse_args()
    if given.run is not None:
        add(given.run, given.name, given.license)
    TABLE.write_text(table("results", "--json", "--folder", str(RESULTS)), encoding="utf-8")
    for page, kinds in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(with_tables(text, kinds), encoding="utf-8")


def add(run: Path, name: str | None, license: str) -> None:
    """Share a run under a name, and keep what it says of itself beside the other results."""
    if name is None or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise SystemExit(f"a name of small letters, digits, '-', '_' and '.' has to follow the run, got {name!r}.")
    records = RESULTS / "zoo" / name
    if records.exists():
        raise SystemExit(f"{records} exists already. Remove it and {ZOO / name} first, or take another name.")
    try:
        share(run, ZOO / name, license=license)
    except UserError as err:
        raise SystemExit(f"error: {err}") from err
    records.mkdir(parents=True)
    for file in RECORDS:
        if (run / file).is_file():
            shutil.copyfile(run / file, records / file)
    forget_places(RunFolder(records), name)


def forget_places(run: RunFolder, name: str) -> None:
    """Take the places of this machine out of a run's records."""
    config, summary, environment = run.read_config(), run.read_summary(), run.read_json("environment.json")
    weights = config.weights_file and without_places(config.weights_file)
    run.write_text("config.yaml", replace(config, data=without_places(config.data), weights_file=weights).to_yaml())
    run.write_json("summary.json", {**summary, "run": name, "data": without_places(summary["data"])})
    run.write_json("environment.json", {**environment, "command": words_without_places(environment["command"])})
    run.settle()


def table(*words: str) -> str:
    """Return what ``csham list`` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "csham", "list", *words], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def with_tables(text: str, kinds: list[str]) -> str:
    """Return a page with its tables as they are now, between the comments that name the commands."""
    for kind in kinds:
        begin = f"<!-- csham list {kind} --markdown -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition(END)
        assert end, f"the page has no place for csham list {kind}"
        text = f"{before}{begin}\n{table(kind, '--markdown').rstrip()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    main()
