"""Policies of augmentation: TrivialAugment and RandAugment, each image changed by its own draw, a batch at a time.

Operations and ranges are those of ``torchvision.transforms.v2``. Its transforms draw one operation for all images of a
call, and called for every image they take longer than many a training step does on a GPU; here the images that drew
the same operation are changed together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from csham.data.names import POLICIES
from csham.errors import unknown_name

__all__ = ["OPERATIONS", "STRONGEST", "Policy", "augmented", "find_policy"]

STRONGEST = 30
"""Strength of an operation is 0 to this; what it does at its strongest is a policy's."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Operations, how many an image gets, and what each does at its strongest.

    Attributes:
        operations: Number of operations that each image gets, one after the other.
        strength: Strength of all of them, 0 to 30; None draws each.
        shear: Pixels by which a row or column is shifted, for each pixel from the corner.
        shift: Pixels by which the image is shifted; below 1, a share of its side.
        angle: Degrees by which it is turned.
        enhance: What is added to brightness, colour, contrast or sharpness of 1, or taken away.
        bits: Bits of eight that posterizing takes away.
    """

    operations: int
    strength: int | None
    shear: float
    shift: float
    angle: float
    enhance: float
    bits: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw operations and strengths, -30 to 30, of some images: (count, operations, 2) int64."""
        size = (count, self.operations)
        number = rng.integers(len(OPERATIONS), size=size)
        strength = rng.integers(STRONGEST + 1, size=size) if self.strength is None else np.full(size, self.strength)
        return np.stack([number, strength * rng.choice([-1, 1], size=size)], -1)


# Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", arXiv:2103.10158, in its wide
# ranges.
_TRIVIAL = Policy(operations=1, strength=None, shear=0.99, shift=32, angle=135, enhance=0.99, bits=6)
# Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", arXiv:1909.13719: two
# operations of strength 9, as for its ResNet-50.
_RAND = Policy(operations=2, strength=9, shear=0.3, shift=150 / 331, angle=30, enhance=0.9, bits=4)


def find_policy(name: str) -> Policy | None:
    """Return a policy by its name; None for ``"none"``.

    Raises:
        UserError: There is no such policy.
    """
    if name not in POLICIES:
        raise unknown_name("augment", name, POLICIES)
    return {"trivial": _TRIVIAL, "rand": _RAND}.get(name)


def augmented(pixels: Tensor, draws: np.ndarray, policy: Policy) -> Tensor:
    """Change each image by its own draw, on its device.

    Args:
        pixels: (B, S, S, 3) uint8.
        draws: Number of an operation and its strength, (B, operations, 2), of :meth:`Policy.draw`.
        policy: Policy that they were drawn for.

    Returns:
        (B, S, S, 3) uint8. Where nothing was shifted or turned to, it is black.
    """
    images = pixels.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    for step in np.moveaxis(draws, 1, 0):
        for number in np.unique(step[:, 0]):
            alike = np.flatnonzero(step[:, 0] == number)
            rows = torch.from_numpy(alike).to(images.device)
            change = tuple(OPERATIONS.values())[number]
            images[rows] = change(images[rows], step[alike, 1] / STRONGEST, policy)
    return images.permute(0, 2, 3, 1)


_Change = Callable[[Tensor, np.ndarray, Policy], Tensor]
"""Changes images, (n, 3, S, S) uint8, by strengths from -1 to 1, (n,)."""


def _shear_x(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    shear = policy.shear * strength
    return _moved(images, x=(1, shear, shear))


def _shear_y(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    shear = policy.shear * strength
    return _moved(images, y=(shear, 1, shear))


def _shift_x(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    return _moved(images, x=(1, 0, _shift(images, strength, policy)))


def _shift_y(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    return _moved(images, y=(0, 1, _shift(images, strength, policy)))


def _rotate(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    angle = np.deg2rad(policy.angle * strength)
    return _moved(images, x=(np.cos(angle), -np.sin(angle), 0), y=(np.sin(angle), np.cos(angle), 0))


def _posterize(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    gone = np.rint(policy.bits * np.abs(strength)).astype(np.int64)
    return images & _each(images, 256 - 2**gone, torch.uint8)


def _solarize(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
    return torch.where(images >= _each(images, 255 * (1 - np.abs(strength))), 255 - images, images)


def _blend(name: str) -> _Change:
    """Make the change that is a blend with what torchvision makes of an image at a factor of 0, or away from it."""

    def change(images: Tensor, strength: np.ndarray, policy: Policy) -> Tensor:
        factor = _each(images, 1 + policy.enhance * strength)
        return (images * factor + _of_torchvision(name)(images, 0.0) * (1 - factor)).clamp_(0, 255).to(torch.uint8)

    return change


def _plain(name: str) -> _Change:
    return lambda images, strength, policy: _of_torchvision(name)(images)


OPERATIONS: dict[str, _Change] = {
    "Identity": lambda images, strength, policy: images,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _shift_x,
    "TranslateY": _shift_y,
    "Rotate": _rotate,
    "Brightness": _blend("adjust_brightness"),
    "Color": _blend("adjust_saturation"),
    "Contrast": _blend("adjust_contrast"),
    "Sharpness": _blend("adjust_sharpness"),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _plain("autocontrast"),
    "Equalize": _plain("equalize"),
}
"""Operations by torchvision's names for them, in the order of their numbers."""


def _of_torchvision(name: str) -> Callable[..., Tensor]:
    # Imported when it is used: it takes a second.
    from torchvision.transforms.v2 import functional  # noqa: PLC0415

    function: Callable[..., Tensor] = getattr(functional, name)
    return function


def _shift(images: Tensor, strength: np.ndarray, policy: Policy) -> np.ndarray:
    """Whole pixels, in halves of the side, from where a pixel is taken."""
    side = images.shape[-1]
    return -np.trunc(strength * policy.shift * (side if policy.shift < 1 else 1)) * 2 / side


def _moved(images: Tensor, x: tuple[Any, ...] = (1, 0, 0), y: tuple[Any, ...] = (0, 1, 0)) -> Tensor:
    """Take each pixel from ``(x . (x, y, 1), y . (x, y, 1))``, both from -1 to 1, the nearest one."""
    n = len(images)
    theta = np.stack([np.broadcast_to(value, n) for value in (*x, *y)], -1).reshape(n, 2, 3)
    matrices = torch.from_numpy(theta.astype(np.float32)).to(images.device)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _each(images: Tensor, values: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(values).to(images.device, dtype)[:, None, None, None]
