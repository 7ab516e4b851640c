"""Measure a network that came without its run."""

from __future__ import annotations

import numpy as np

from csham.data import PackedDataset
from csham.data.split import TEST
from csham.errors import UserError
from csham.inference.trained import Trained
from csham.training.config import resolve
from csham.training.evaluation import Evaluation, Measured, check_part, measure
from csham.training.progress import QuietProgress
from csham.words import counted

__all__ = ["evaluate_shared"]

_BATCH = 128


def evaluate_shared(
    trained: Trained,
    data: str | None,
    *,
    part: str = "test",
    device: str | None = None,
    batch_size: int | None = None,
    tta: bool = False,
    progress: QuietProgress | None = None,
) -> Evaluation:
    """Measure the network of a shared folder, which does not say which images it was trained on.

    Args:
        trained: As :func:`csham.load` returns it.
        data: A dataset with the same classes.
        part: ``"test"``, where the data has a test part of its own, or ``"all"``.
        device: As in :func:`csham.training.evaluate`, and for the rest.
        batch_size: Images at a time.
        tta: Average several views of each image.
        progress: Told about the reading of the dataset.

    Raises:
        UserError: No data is given, or nothing says which of its images are the part.
    """
    check_part(part)
    if data is None:
        raise UserError(f"{trained.origin} does not say where its images are. Name a dataset with the same classes.")
    if part not in ("test", "all"):
        raise UserError(f"{trained.origin} does not say which images its run held out: --part test or all.")

    def choose(dataset: PackedDataset) -> np.ndarray:
        rows = np.flatnonzero(dataset.parts == TEST) if part == "test" else np.arange(len(dataset))
        if not len(rows):
            raise UserError(
                f"{dataset.source} has no test part of its own, and {trained.origin} does not say which of these "
                "images it was trained on. --part all measures all, those that it was trained on too."
            )
        return rows

    found = measure(
        Measured(trained.origin, trained.network, trained.info, trained.run_weights),
        resolve({"data": data}),
        data,
        choose,
        part=part,
        device=device,
        batch_size=batch_size or _BATCH,
        tta=tta,
        progress=progress,
    )
    if part == "all":
        count = counted(len(found.dataset), "image")
        found.summary["note"] = f"{trained.origin} may have been trained on some of these {count}: it does not say"
    return found
