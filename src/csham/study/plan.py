"""Plan of a call: the cells of a study, how far they are, and the hours that are left, from a few timed steps.

Imports PyTorch only where something is left to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csham.study.grid import Network, Study
from csham.study.progress import StudyProgress
from csham.study.setup import Setup
from csham.study.store import CellState, cell_states

if TYPE_CHECKING:
    from csham.study.probe import Probe

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """Cells of a call, and an estimate of what is left of them.

    Attributes:
        setup: Study that is, or would be, in the folder.
        states: Of the cells.
        hours: Estimates by the keys of the cells that are left; None where a network cannot be trained.
        failures: Reasons why networks cannot be trained, by their labels.
        jobs: Cells to train at the same time.
    """

    setup: Setup
    states: tuple[CellState, ...]
    hours: Mapping[str, float | None]
    failures: Mapping[str, str]
    jobs: int

    @property
    def total_hours(self) -> float | None:
        """Hours until all are done, by that many jobs; None where a network cannot be trained."""
        if None in self.hours.values():
            return None
        return sum(hours or 0.0 for hours in self.hours.values()) / self.jobs

    def to_dict(self) -> dict[str, Any]:
        """Return what ``csham compare --dry-run --json`` prints."""
        cells = [
            {
                "network": state.cell.network.label,
                "seed": state.cell.seed,
                "key": state.cell.key,
                "state": state.state,
                "epochs_done": state.epochs_done if state.state == "cut off" else None,
                "estimated_hours": self.hours.get(state.cell.key),
            }
            for state in self.states
        ]
        study = str(self.setup.store.path)
        return {"study": study, "cells": cells, "jobs": self.jobs, "estimated_hours": self.total_hours}


def make_plan(
    setup: Setup, machine: Mapping[str, Any], *, jobs: int, shard: tuple[int, int], progress: StudyProgress
) -> Plan:
    """Look at the cells, and time a few training steps of each network that has any left; nothing is written."""
    states = cell_states(setup.store, setup.study.part(shard))
    left = [state for state in states if state.state in ("to do", "cut off")]
    measured = _measure(setup.study, left, machine, jobs, progress) if left else {}
    failures = {network.label: probe.failed for network, probe in measured.items() if probe.failed}
    return Plan(setup, tuple(states), _hours(setup, left, measured) if left else {}, failures, jobs)


def _measure(
    study: Study, left: list[CellState], machine: Mapping[str, Any], jobs: int, progress: StudyProgress
) -> dict[Network, Probe]:
    from csham.study.probe import probe  # noqa: PLC0415  imports torch

    return probe(
        study,
        list(dict.fromkeys(state.cell.network for state in left)),
        device=machine.get("device", "auto"),
        threads=max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None,
        tell=lambda label: progress.preparing(0, 0, f"timing a few steps of {label}"),
    )


def _hours(setup: Setup, left: list[CellState], measured: Mapping[Network, Probe]) -> dict[str, float | None]:
    from csham.study.cell import open_data  # noqa: PLC0415  imports torch
    from csham.study.probe import estimate_seconds  # noqa: PLC0415
    from csham.training.progress import QuietProgress  # noqa: PLC0415

    dataset = setup.dataset or open_data(setup.study, {}, QuietProgress())
    hours: dict[str, float | None] = {}
    for state in left:
        config, network = state.cell.config, measured[state.cell.network]
        hours[state.cell.key] = None
        if network.seconds_per_image is not None:
            train, validation, test = map(len, dataset.split(config.seed, config.validation))
            seconds = estimate_seconds(setup.study, state.cell, network, (train, validation, test), state.epochs_done)
            hours[state.cell.key] = seconds / 3600
    return hours
