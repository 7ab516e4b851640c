"""Steps of ``csham compare`` between the study's being made and its cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csham.study.budget import add_controls, step_times
from csham.study.progress import StudyProgress
from csham.study.setup import Setup, check_records
from csham.study.store import Store
from csham.training.progress import create_progress

__all__ = ["check_store", "find_controls"]


def check_store(setup: Setup, progress: StudyProgress, adopt: Path | None) -> None:
    """Repair the records, check that they are the study's, and take finished runs over from another folder."""
    setup.store.repair()
    for note in check_records(setup.study, setup.store.records(), setup.store.path):
        progress.note(note)
    if adopt is not None:
        # Imported here: only this needs PyTorch.
        from csham.study.cell import adopt_runs  # noqa: PLC0415

        adopt_runs(setup.store, adopt, progress.note)


def find_controls(store: Store, machine: Mapping[str, Any], *, quiet: bool) -> None:
    """Extend the study by budget controls, which takes some minutes of measuring the first time."""
    study, progress = store.study, create_progress(quiet=quiet)
    measure = step_times(
        num_classes=study.data.classes,
        image_size=study.data.image_size,
        batch_size=study.settings["batch_size"],
        precision=study.settings["precision"],
        device=machine.get("device", "auto"),
        progress=progress,
    )
    try:
        add_controls(store, measure, progress.note)
    finally:
        progress.close()
