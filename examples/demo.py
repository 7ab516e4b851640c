"""The demo: one small network plain, with SE and with CSHAM, on handwritten digits, two seeds each.

It calls the commands a user has (``csham train``), then puts their run folders side by side in a table and a picture.
Two seeds and a few epochs show how the parts fit together, not which attention is better.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from csham.cli import main

VARIANTS = {
    "plain": ["--attention", "none"],
    "SE": ["--attention", "se"],
    "CSHAM": ["--attention", "csham", "--strategy", "transfer"],
}
SEEDS = (0, 1)
SETTINGS = ["digits", "--backbone", "resnet14", "--recipe", "quick", "--epochs", "3", "--batch-size", "32"]

Runs = dict[str, list[Path]]


def demo(folder: Path) -> None:
    """Train every variant with every seed, then print the table and draw the curves."""
    runs: Runs = {name: [] for name in VARIANTS}
    for seed in SEEDS:
        for name, options in VARIANTS.items():
            run = folder / f"{name.lower()}-seed{seed}"
            words = ["train", *SETTINGS, *options, "--seed", str(seed), "--run", str(run)]
            print(f"\n$ csham {' '.join(words)}", flush=True)
            if (code := main(words)) != 0:
                sys.exit(code)
            runs[name].append(run)
    picture = folder / "curves.png"
    draw_curves(runs, picture)
    Console(width=100 if not sys.stdout.isatty() else None).print(table(runs))
    print(f"curves: {picture}\nrun folders: {folder}")


def table(runs: Runs) -> Table:
    """Put the runs' summaries side by side: test top-1 of the last epoch, parameters, training seconds."""
    columns = ("", "top-1, mean %", "lowest to highest %", "parameters", "seconds a run")
    result = Table(*columns, title=f"digits, {SETTINGS[2]}, {len(SEEDS)} seeds")
    for name, folders in runs.items():
        summaries = [json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in folders]
        top1 = [summary["top1"] for summary in summaries]
        seconds = mean(summary["seconds"] for summary in summaries)
        spread = f"{min(top1):.2f} to {max(top1):.2f}"
        result.add_row(name, f"{mean(top1):.2f}", spread, f"{summaries[0]['params']:,}", f"{seconds:.1f}")
    return result


def draw_curves(runs: Runs, picture: Path) -> None:
    """Draw validation top-1 against epochs, one line a run, one colour a variant."""
    from matplotlib.figure import Figure  # noqa: PLC0415  slow to import, needed last
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for colour, (name, folders) in enumerate(runs.items()):
        for number, run in enumerate(folders):
            with (run / "metrics.csv").open(encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            epochs = [int(row["epoch"]) for row in rows]
            top1 = [float(row["val_top1"]) for row in rows]
            style = "-" if number == 0 else "--"
            axes.plot(epochs, top1, style, color=f"C{colour}", marker="o", label=name if number == 0 else None)
    axes.set(xlabel="epoch", ylabel="validation top-1, %", title=f"{SETTINGS[2]} on digits, {len(SEEDS)} seeds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    demo(Path(".demo") / time.strftime("%Y%m%d-%H%M%S"))
