"""Meaning of columns of labels and parts, in a table as in Parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csham.data.sources.folder import existing
from csham.data.split import TEST, TRAIN, VALIDATION
from csham.errors import UserError
from csham.words import some

__all__ = ["PART_COLUMNS", "check_classes", "path_and_columns", "settled_parts"]

PART_COLUMNS = ("part", "split")  # that say which images train and which test
_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


def path_and_columns(data: str | Path) -> tuple[Path | None, tuple[str, ...]]:
    """Take ``PATH`` or ``PATH:COLUMN,COLUMN`` apart; the path is None where there is no such file or folder."""
    path = existing(data)
    if path is not None or not isinstance(data, str) or ":" not in data:
        return path, ()
    place, _, columns = data.rpartition(":")
    return existing(place), tuple(columns.split(","))


def settled_parts(parts: np.ndarray, where: Path) -> np.ndarray:
    """Give the parts as folders' are taken: a validation part without a test part is the test part.

    Args:
        parts: (N,) uint8.
        where: The table or folder, for the error.

    Raises:
        UserError: No image is in the training part.
    """
    if not (parts == TRAIN).any():
        held = ", ".join(_NAMES[part] for part in np.unique(parts).tolist()) or "no"
        raise UserError(f"{where} holds no training images, only {held} images. Give some of them the part train.")
    if not (parts == TEST).any():
        return np.where(parts == VALIDATION, TEST, parts).astype(np.uint8)
    return parts


def check_classes(classes: tuple[str, ...], labels: np.ndarray, parts: np.ndarray, where: Path) -> None:
    """Check that there are two classes or more, and that every part has all of them.

    Raises:
        UserError: They do not.
    """
    if len(classes) < 2:
        raise UserError(f"{where} holds only one class, {classes[0]!r}. At least two are needed.")
    held = np.unique(parts).tolist()
    missing = [
        f"{_NAMES[part]}/{classes[label]}"
        for part in held
        for label in np.setdiff1d(np.arange(len(classes)), labels[parts == part]).tolist()
    ]
    if missing:
        names = " and ".join(_NAMES[part] for part in held)
        raise UserError(
            f"the classes of {names} in {where} differ. Missing: {some(missing)}. All need the same classes."
        )
