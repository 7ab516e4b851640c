"""Gates that start as their authors start them, open, or shut: top-1, and what the weights do by stage once trained.

    python benchmarks/open_gates.py digits --backbone resnet14 --recipe quick --study DIR
    python benchmarks/open_gates.py FOLDER --attentions csham:transfer --epochs 6 --seeds 3 --study DIR
    python benchmarks/open_gates.py RUN... --weights-only

Trains a study of every attention with the three starts, in its folder, where the same call goes on, and measures the
weights of every trained network on test images (``csham gates``). Differences to the start as built are paired by seed.
Appends rows to benchmarks/data/open_gates.csv and benchmarks/data/gate_weights.csv. ``--weights-only`` measures the
weights of runs or studies that are there, and trains nothing; it takes one study that is cut short, too.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import csham
from csham.explain import gate_table, measure_runs, trained_runs
from csham.study.grid import Network, expand_networks, read_seeds
from csham.study.run import compare
from csham.study.setup import Request
from csham.study.store import Store
from record import append_rows

STARTS: dict[str, dict[str, Any]] = {"as built": {}, "open": {"open_gates": True}, "gated": {"gated": True}}


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is missing, and return a row for every run that is there."""
    networks = [Network(args.backbone)]
    for start in STARTS.values():
        networks += expand_networks([args.backbone], args.attentions.split(","), **start)
    settings = {"recipe": args.recipe} | ({"epochs": args.epochs} if args.epochs else {})
    request = Request(
        data=args.data[0],
        folder=args.study,
        networks=networks,
        seeds=read_seeds(args.seeds),
        settings=settings,
        machine={"compile": False, "device": args.device, "trackers": ("none",)},
    )
    compare(request, costs=False, quiet=True)
    return rows_of(args.study)


def rows_of(study: Path) -> list[dict[str, Any]]:
    """Return the top-1 of every finished run of a study."""
    return [row_of(record) for record in Store(study).records() if record["status"] == "done"]


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the top-1 of one run, with its start and the network that it is compared with."""
    network = Network.from_dict(record["network"])
    start = "open" if network.open_gates else "gated" if network.gated else "as built"
    attention = "none" if network.plain else f"{network.attention}:{network.strategy}"
    config = record["config"]
    told = {"data": Path(config["data"]).name, "backbone": network.backbone, "recipe": config["recipe"]}
    told |= {"epochs": config["epochs"], "precision": record["result"]["machine"]["precision"]}
    return told | {"attention": attention, "start": start, "seed": record["seed"], "top1": record["result"]["top1"]}


def print_differences(rows: Sequence[dict[str, Any]]) -> None:
    """Print what each start gains over the start as built, and that over the plain network."""
    as_built = [row for row in rows if row["start"] == "as built"]
    attended = [row for row in rows if row["attention"] != "none"]
    for chosen, variant, baseline, groups in (
        (as_built, "attention", "none", ()),
        (attended, "start", "as built", "attention"),
    ):
        with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as file:
            writer = csv.DictWriter(file, list(chosen[0]))
            writer.writeheader()
            writer.writerows(chosen)
            file.flush()
            found = csham.verdict(file.name, metric="top1", variant=variant, baseline=baseline, groups=groups)
        for one in found.metrics[0].comparisons:
            interval = "" if one.t_interval is None else "{:+.2f} to {:+.2f}".format(*one.t_interval)
            where = " ".join(filter(None, (one.backbone, one.name)))
            print(f"{where:<28}{one.mean:+8.2f}  {interval:<18}{one.n} seeds against {baseline}: {one.verdict}")


def measure_weights(paths: Sequence[Path], samples: int) -> list[dict[str, Any]]:
    """Measure the weights of every run, print them by stage, and return a row for each run and stage."""
    runs = measure_runs(trained_runs(paths), samples=samples)
    for row in gate_table(runs):
        print(
            f"{row['network']:<46}{row['stage']:<8}{row['kind']:<9}{row['runs']} runs  mean {row['mean']:.3f}  "
            f"within {row['within']:.3f}  across {row['across']:.3f}  dead {row['dead']:.0%}"
            + ("" if row["theta"] is None else f"  theta {row['theta']:.3f}")
        )
    rows = [row for run in runs for row in run.rows()]
    return [{name: _rounded(value) for name, value in row.items() if name != "run"} for row in rows]


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="an image folder or a data set's name; with --weights-only runs")
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--attentions", default="se,csham,csham:transfer")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", default="5")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=256, help="test images of each run")
    parser.add_argument("--study", type=Path, default=Path("studies/open-gates"))
    parser.add_argument("--weights-only", action="store_true")
    given = parser.parse_args()
    found = [] if given.weights_only else train(given)
    if given.weights_only:
        found = [row for path in given.data if Store(path).exists for row in rows_of(Path(path))]
    if found:
        print_differences(found)
        append_rows("open_gates", found)
    where = [Path(path) for path in given.data] if given.weights_only else [given.study]
    append_rows("gate_weights", measure_weights(where, given.samples))
