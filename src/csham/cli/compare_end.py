"""End of ``csham compare``: costs, verdicts, the report, and an exit code that says whether that is all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from csham.cli.common import print_json
from csham.study.engines import Outcome
from csham.study.grid import Cell, Study
from csham.study.store import Store
from csham.training.progress import create_progress
from csham.words import say

__all__ = ["conclude", "part_of"]

_LEAST_SECONDS, _MOST_SECONDS = 15.0, 300.0


def conclude(
    store: Store,
    shard: tuple[int, int],
    outcome: Outcome,
    *,
    costs: bool,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what came out.

    Args:
        store: The study's folder.
        shard: Part of the cells that the call was to do.
        outcome: End of the engine: the signal that stopped it, if any did.
        costs: True to measure costs, once every cell of the study is done or has failed.
        device: Device to measure on.
        quiet: Without progress.
        as_json: As JSON.

    Raises:
        typer.Exit: Something is not done.
    """
    # Imported here: scipy and what draws take seconds, which the first cell need not wait for.
    from csham.cli.study_results import print_results  # noqa: PLC0415
    from csham.report.study_report import write_report  # noqa: PLC0415

    if outcome.signum is not None:
        say(f"stopped, and saved. To go on: csham compare --study {shlex.quote(str(store.path))}", error=True)
        raise typer.Exit(128 + outcome.signum)
    study, records = store.study, store.by_key()
    with store.concluding():
        if costs and all(cell.key in records for cell in study.cells()):
            _measure_costs(store, study, records, device, quiet=quiet)
        report = write_report(store.path)
    if as_json:
        print_json(_as_json(store, study, records) | {"results": report.results.to_dict(), "report": str(report.page)})
    else:
        print_results(f"{store.path}: test top-1 of the last epoch", report.results)
        say(report.results.headline)
        say(f"report: {shlex.quote(str(report.page))}")
    cells = part_of(study, shard)
    failed = [records[cell.key] for cell in cells if records.get(cell.key, {}).get("status") == "failed"]
    missing = [cell for cell in cells if cell.key not in records]
    if failed:
        _list_failed(store, failed)
    if missing:
        say(f"{len(missing)} of {len(cells)} cells are not done: {missing[0].label}, ...", error=True)
    if failed or missing:
        raise typer.Exit(1)


def part_of(study: Study, shard: tuple[int, int]) -> list[Cell]:
    """Return the cells of a shard: number i of n, counted from 1."""
    return study.cells()[shard[0] - 1 :: shard[1]]


def _measure_costs(
    store: Store, study: Study, records: Mapping[str, Mapping[str, Any]], device: str, *, quiet: bool
) -> None:
    """Measure for a tenth of the time that training took, within bounds."""
    # Imported here: it imports PyTorch where anything is left to be measured.
    from csham.study.costs import measure_costs  # noqa: PLC0415

    trained = sum(float(record.get("result", {}).get("seconds") or 0.0) for record in records.values())
    progress = create_progress(quiet=quiet)
    try:
        measure_costs(
            study,
            store.path,
            device=device,
            seconds=min(max(trained / 10, _LEAST_SECONDS), _MOST_SECONDS),
            progress=progress,
        )
    finally:
        progress.close()


def _list_failed(store: Store, failed: Sequence[Mapping[str, Any]]) -> None:
    lines = [f"{len(failed)} failed:"]
    for record in failed:
        error = record.get("error", {})
        said = (str(error.get("message", "")).splitlines() or [""])[0]
        lines.append(f"  {record['label']}, seed {record['seed']}: {error.get('type', 'Error')}: {said}")
    lines.append(f"To try these again: csham compare --study {shlex.quote(str(store.path))} --retry-failed")
    say(*lines, error=True)


def _as_json(store: Store, study: Study, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    cells = []
    for cell in study.cells():
        record = records.get(cell.key, {})
        cells.append(
            {
                "network": cell.network.label,
                "seed": cell.seed,
                "key": cell.key,
                "state": record.get("status", "to do"),
                "top1": record.get("result", {}).get("top1"),
                "run": record.get("run"),
                "error": record.get("error", {}).get("message"),
            }
        )
    return {"study": str(store.path), "finished": all(cell["state"] == "done" for cell in cells), "cells": cells}
