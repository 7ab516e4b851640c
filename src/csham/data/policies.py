"""Policies of augmentation: torchvision's, each image changed by its own draw, as in the papers.

Sources: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", arXiv:2103.10158;
Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", arXiv:1909.13719.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from csham.data.names import POLICIES
from csham.errors import unknown_name

__all__ = ["augmented", "make_policy"]


def make_policy(name: str) -> Callable[[Tensor], Tensor] | None:
    """Return what changes one image, (3, S, S) uint8, by draws from torch's global generator; None for ``"none"``.

    Raises:
        UserError: There is no such policy.
    """
    if name not in POLICIES:
        raise unknown_name("augment", name, POLICIES)
    if name == "none":
        return None
    # Imported when it is used: it takes a second.
    from torchvision.transforms import v2  # noqa: PLC0415

    return v2.TrivialAugmentWide() if name == "trivial" else v2.RandAugment()


def augmented(pixels: Tensor, policy: Callable[[Tensor], Tensor], seeds: np.ndarray) -> Tensor:
    """Change each image by its own draw, on its device; torch's generators are left as they were.

    Args:
        pixels: (B, S, S, 3) uint8.
        policy: See :func:`make_policy`; it changes all images of a call alike, so it is called for each.
        seeds: Of each image's draw, (B,) int64, 0 or more.

    Returns:
        (B, S, S, 3) uint8.
    """
    with torch.random.fork_rng(devices=[]):  # draws are made on the host, wherever the images are
        changed = [
            _drawn(policy, image, seed) for image, seed in zip(pixels.permute(0, 3, 1, 2), seeds.tolist(), strict=True)
        ]
    return torch.stack(changed).permute(0, 2, 3, 1)


def _drawn(policy: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the generators of GPUs as well
    return policy(image)
