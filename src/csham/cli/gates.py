"""``csham gates``: what the weights of attention do by stage, over runs and studies."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csham.cli.common import (
    check_counts,
    check_report_packages,
    check_seed,
    print_json,
    print_note,
    print_table,
    use_named_code,
)
from csham.cli.options import (
    MACHINE,
    CodeOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    PageOption,
    QuietOption,
    WeightsOption,
)
from csham.training.outputs import check_folder
from csham.training.progress import create_progress
from csham.training.run_folder import check_choice
from csham.words import counted, say

if TYPE_CHECKING:
    from csham.explain import RunGates

__all__ = ["gates"]


def gates(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, and folders of studies.", show_default=False)],
    *,
    samples: Annotated[int, typer.Option(help="Test images of each run's data.")] = 256,
    seed: Annotated[int, typer.Option(help="Chooses the test images.")] = 0,
    data: Annotated[
        str | None, typer.Option(help="The runs' images, where they lie now.", show_default="where they were")
    ] = None,
    weights: WeightsOption = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)] = 16,
    device: DeviceOption = None,
    code: CodeOption = None,
    output: PageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Show the weights of attention by stage: near 1/2 or 1, how they vary, and how many never do."""
    check_counts(samples=samples, batch_size=batch_size)
    check_seed(seed)
    check_choice(weights)
    check_folder("--output", output, runs=runs, data=data)
    if output is not None:
        check_report_packages()
    use_named_code(code)
    from csham.explain.gates import DEAD, gate_table, measure_runs, trained_runs  # noqa: PLC0415  torch takes seconds

    notes: list[str] = []
    paths = trained_runs(runs, notes.append)
    for note in notes:
        say(f"note: {note}", error=True)
    progress = create_progress(quiet=quiet)
    start, found = time.monotonic(), 0

    def tell(run: RunGates) -> None:
        nonlocal found
        found += 1
        seen = found * samples
        progress.step(f"{found} of {len(paths)} runs", seen, None, seen / (time.monotonic() - start))

    try:
        progress.start(0, len(paths) * samples)
        measured = measure_runs(
            paths,
            samples=samples,
            seed=seed,
            data=data,
            weights=weights,
            batch_size=batch_size,
            device=device,
            progress=progress.preparing,
            on_run=tell,
        )
    finally:
        progress.close()
    table = gate_table(measured)
    rows = [row for run in measured for row in run.rows()]
    nothing = list(dict.fromkeys(f"{run.network}: no weights seen, {run.nothing}" for run in measured if run.nothing))
    page = None
    if output is not None:
        from csham.report.gates_page import write_gates  # noqa: PLC0415  matplotlib takes seconds

        title = ", ".join(path.resolve().name for path in runs[:3]) + (", ..." if len(runs) > 3 else "")
        page = write_gates(title, table, rows, nothing, DEAD, output, notes)
    if as_json:
        more = {} if page is None else {"report": str(page)}
        print_json({"stages": table, "runs": rows, "nothing": nothing, "notes": notes, "dead": DEAD, **more})
        return
    _print(table, sum(not run.nothing for run in measured), measured[0].images, DEAD)
    say(*nothing)
    if page is not None:
        say(f"report: {shlex.quote(str(page))}")


def _print(table: Sequence[Mapping[str, Any]], runs: int, images: int, dead: float) -> None:
    if not table:
        return
    several = len({row["data"] for row in table}) > 1
    gated = any(row["theta"] is not None for row in table)
    header = ["network", "stage", "weights", "runs", "mean", "from 1/2", "from 1", "within", "across", "dead"]
    lines = [
        [
            *([row["data"]] if several else []),
            *(row[name] for name in ("network", "stage", "kind", "runs")),
            *(_with_sd(row, name) for name in ("mean", "from_half", "from_one", "within", "across")),
            f"{row['dead']:.0%}",
            *([_with_sd(row, "theta")] if gated else []),
        ]
        for row in table
    ]
    title = f"weights of attention by stage, {counted(runs, 'run')}, {images} test images each"
    print_table(title, [*(["data"] if several else []), *header, *(["θ"] if gated else [])], lines)
    print_note(
        "within: standard deviation of the weights of one image; across: of one weight over images; both means",
        f"dead: weights that vary by less than {dead:g} over images; ±: between runs",
        *(["θ: of gated points, (1 - θ) attention(x) + θ x"] if gated else []),
    )


def _with_sd(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    deviation = row[f"{name}_sd"]
    return f"{row[name]:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")
