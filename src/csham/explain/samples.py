"""Test images of a run, drawn by a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from csham.data import prepare
from csham.errors import UserError
from csham.inference.trained import Trained
from csham.training.run_folder import RunFolder

__all__ = ["sample_test_images"]


def sample_test_images(
    trained: Trained, count: int, *, seed: int = 0, progress: Callable[[int, int, str], None] | None = None
) -> list[np.ndarray]:
    """Draw images of the test part of a run's own data.

    Args:
        trained: Loaded from a run folder.
        count: Number of images; all where there are fewer.
        seed: Decides which.
        progress: Told about the reading of the dataset.

    Returns:
        Squares, (P, P, 3) uint8, of which the network sees what it sees in evaluation.

    Raises:
        UserError: ``trained`` is no run, or its data is not there any more.
    """
    if count < 1:
        raise UserError(f"the number of samples must be at least 1, got {count}.")
    if not trained.path.is_dir():
        raise UserError(f"{trained.path} does not say what it was trained on. Give the run folder for test images.")
    config = RunFolder(trained.path).read_config()
    dataset = prepare(config.data, image_size=trained.info.image_size, max_bad=config.max_bad, progress=progress)
    test = dataset.split(config.seed, config.validation).test
    if not len(test):
        raise UserError(f"the test part of {dataset.source} has no images.")
    chosen = np.sort(np.random.default_rng(seed).permutation(test)[:count])
    return [np.array(dataset.images[index]) for index in chosen]
