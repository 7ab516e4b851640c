"""Split of images for training, validation and test: stratified, by seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csham.errors import UserError

__all__ = ["PARTS", "TEST", "TRAIN", "VALIDATION", "Split", "generator", "held_out", "split_parts"]

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = {  # by what users call them
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
TEST_FRACTION = 0.2  # of a source without a test part

_TEST_SALT, _VALIDATION_SALT = 0x7E57, 0x0A11


class Split(NamedTuple):
    """Row numbers of a dataset's three parts, each sorted, int64, without overlap."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_parts(labels: np.ndarray, parts: np.ndarray, seed: int, validation: float) -> Split:
    """Divide images into training, validation and test part.

    A given part is taken as it is. Without a given test part, 20% of every class become it; without a given
    validation part, the fraction ``validation`` of every class's training images does. A class gives at least
    one image to each part while that leaves one to train on.

    Args:
        labels: Class numbers, (N,) int64.
        parts: The part given by the source, (N,): ``TRAIN``, ``VALIDATION`` or ``TEST``.
        seed: 0 or more; the same seed gives the same split.
        validation: Fraction in [0, 1).

    Raises:
        UserError: ``validation`` or ``seed`` is out of range.
    """
    if not 0 <= validation < 1:
        raise UserError(f"the validation fraction must be at least 0 and below 1, got {validation}.")
    chosen = parts.copy()
    if not (parts == TEST).any():
        _move(chosen, labels, TEST_FRACTION, TEST, generator(seed, _TEST_SALT))
    if validation > 0 and not (parts == VALIDATION).any():
        _move(chosen, labels, validation, VALIDATION, generator(seed, _VALIDATION_SALT))
    return Split(*(np.flatnonzero(chosen == part) for part in (TRAIN, VALIDATION, TEST)))


def held_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Choose about ``fraction`` of every class: at least one image of each, but never a class's last one.

    Args:
        labels: Class numbers, (N,).
        fraction: Above 0 and below 1.
        rng: Generator that the choice comes from.

    Returns:
        Positions in ``labels``, sorted, int64.
    """
    by_class = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[by_class])) + 1
    chosen = [
        rng.permutation(members)[: min(len(members) - 1, max(1, int(len(members) * fraction + 0.5)))]
        for members in np.split(by_class, bounds)
        if len(members) > 1
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))


def generator(seed: int, *words: int) -> np.random.Generator:
    """Build a random generator that depends on these numbers alone: not on process, device or order of calls.

    Raises:
        UserError: ``seed`` is negative.
    """
    if seed < 0:
        raise UserError(f"the seed must be 0 or more, got {seed}.")
    return np.random.default_rng([seed, *words])


def _move(parts: np.ndarray, labels: np.ndarray, fraction: float, to: int, rng: np.random.Generator) -> None:
    pool = np.flatnonzero(parts == TRAIN)
    parts[pool[held_out(labels[pool], fraction, rng)]] = to
