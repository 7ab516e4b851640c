"""Mixup and CutMix: timm's, of whole batches, with numpy's global generator left as it was.

Image i of B is mixed with image B - 1 - i, all pairs of a batch in the same ratio.

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412; Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features", arXiv:1905.04899.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from csham.errors import UserError

__all__ = ["mixed", "pairs_of_rank"]


def mixed(
    images: Tensor, labels: Tensor, classes: int, *, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix the images of a batch in pairs, and their classes in the same shares.

    Args:
        images: (B, 3, S, S) float32; changed in place. Of an odd number, the first stays as it is.
        labels: (B,) int64.
        classes: Number of classes.
        mixup: Alpha of the beta distribution that the ratio of a blend comes from; 0 is off.
        cutmix: Alpha of the one that the area of a pasted box comes from; 0 is off. With both, a coin decides.
        rng: Generator that the draws come from.

    Returns:
        The images, and the share of each class in each of them, (B, classes) float32.
    """
    # Imported when it is used: it takes seconds.
    from timm.data import Mixup  # noqa: PLC0415

    mix, count = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes), len(labels)
    if count % 2:  # timm wants pairs: the first one's is its copy
        images, labels = (torch.cat([values, values[:1]]) for values in (images, labels))
    state = np.random.get_state(legacy=False)  # timm draws from the global generator
    np.random.seed(rng.integers(2**32, size=8))
    try:
        images, targets = mix(images, labels)
    finally:
        np.random.set_state(state)
    return images[:count], targets[:count]


def pairs_of_rank(batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Return a process's places in a batch, such that the pair of each of its images is its own too.

    Raises:
        UserError: The batch cannot be divided into pairs.
    """
    if world_size > 1 and batch_size % (2 * world_size):
        raise UserError(
            f"mixup and CutMix need pairs of images in each of the {world_size} processes, got a batch of "
            f"{batch_size}. Choose a --batch-size that is a multiple of {2 * world_size}."
        )
    places = np.arange(batch_size)
    if world_size == 1:
        return places
    half = batch_size // (2 * world_size)
    first = places[rank * half : (rank + 1) * half]
    return np.concatenate([first, batch_size - 1 - first[::-1]])
