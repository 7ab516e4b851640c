"""``csham compare --dry-run``: the cells of a study, how far they are, and the hours they will take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from csham.cli.common import print_json, print_table
from csham.study.grid import Network, Study
from csham.study.progress import StudyProgress
from csham.study.setup import Setup
from csham.study.store import CellState, cell_states
from csham.words import say

if TYPE_CHECKING:
    from csham.study.probe import Probe

__all__ = ["show_plan"]


def show_plan(
    setup: Setup,
    machine: Mapping[str, Any],
    *,
    jobs: int,
    shard: tuple[int, int],
    as_json: bool,
    progress: StudyProgress,
) -> None:
    """List the cells, and estimate the hours from a few timed steps; nothing is written."""
    study = setup.study
    states = cell_states(setup.store, study.cells()[shard[0] - 1 :: shard[1]])
    left = [state for state in states if state.state in ("to do", "cut off")]
    measured = _measure(study, left, machine, jobs, progress)
    hours = _hours(setup, left, measured)
    total = None if any(value is None for value in hours.values()) else sum(v or 0.0 for v in hours.values()) / jobs
    if as_json:
        print_json(_as_json(setup, states, hours, total, jobs))
        return
    rows = [[s.cell.network.label, s.cell.seed, s.sentence, _shown(hours, s)] for s in states]
    print_table(f"{setup.store.path}: {len(states)} cells", ["network", "seed", "state", "hours"], rows)
    for network, found in measured.items():
        if found.failed:
            say(f"{network.label} cannot be trained: {found.failed}", error=True)
    if not left:
        say("nothing is left to do")
    elif total is not None:
        many = f" with {jobs} jobs" if jobs > 1 else ""
        say(
            f"{len(left)} cells to do: about {_duration(total)}{many}, estimated from a few training steps of each "
            "network on this machine, without torch.compile and the first minute of each process"
        )


def _measure(
    study: Study, left: list[CellState], machine: Mapping[str, Any], jobs: int, progress: StudyProgress
) -> dict[Network, Probe]:
    if not left:
        return {}
    # Imported here, so that a finished study is listed without importing PyTorch.
    from csham.study.probe import probe  # noqa: PLC0415

    networks = list(dict.fromkeys(state.cell.network for state in left))
    return probe(
        study,
        networks,
        device=machine.get("device", "auto"),
        threads=max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None,
        tell=lambda label: progress.preparing(0, 0, f"timing a few steps of {label}"),
    )


def _hours(setup: Setup, left: list[CellState], measured: Mapping[Network, Probe]) -> dict[str, float | None]:
    """Estimate hours by the keys of cells; None where a network cannot be trained."""
    if not left:
        return {}
    from csham.study.cell import open_data  # noqa: PLC0415
    from csham.study.probe import estimate_seconds  # noqa: PLC0415
    from csham.training.progress import QuietProgress  # noqa: PLC0415

    dataset = setup.dataset or open_data(setup.study, {}, QuietProgress())
    found: dict[str, float | None] = {}
    for state in left:
        config = state.cell.config
        train, validation, test = map(len, dataset.split(config.seed, config.validation))
        known = measured[state.cell.network]
        seconds = (
            None
            if known.seconds_per_image is None
            else estimate_seconds(setup.study, state.cell, known, (train, validation, test), state.epochs_done)
        )
        found[state.cell.key] = None if seconds is None else seconds / 3600
    return found


def _as_json(
    setup: Setup, states: list[CellState], hours: Mapping[str, float | None], total: float | None, jobs: int
) -> dict[str, Any]:
    cells = [
        {
            "network": state.cell.network.label,
            "seed": state.cell.seed,
            "key": state.cell.key,
            "state": state.state,
            "epochs_done": state.epochs_done if state.state == "cut off" else None,
            "estimated_hours": hours.get(state.cell.key),
        }
        for state in states
    ]
    return {"study": str(setup.store.path), "cells": cells, "jobs": jobs, "estimated_hours": total}


def _shown(hours: Mapping[str, float | None], state: CellState) -> str:
    value = hours.get(state.cell.key)
    return "" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _duration(hours: float) -> str:
    minutes = round(hours * 60)
    if minutes < 90:
        return f"{max(minutes, 1)} minute{'s' * (minutes > 1)}"
    return f"{hours:.1f} hours"
