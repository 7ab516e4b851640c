"""Distance of an exported file's answers from the network's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csham import ops
from csham.errors import UserError
from csham.export.program import Deployed

__all__ = ["Parity", "Runner", "compare", "reference_logits", "resized"]

Runner = Callable[[Tensor], Tensor]

_BATCH = 64


@dataclass(frozen=True)
class Parity:
    """Agreement of two networks on the same images.

    Attributes:
        images: Number of images.
        max_error: The largest difference of two logits; infinity where only one of them is a number.
        largest_logit: Of the network's own, by magnitude.
        disagreements: For how many images the class of the largest logit differs.
    """

    images: int
    max_error: float
    largest_logit: float
    disagreements: int

    @property
    def top1_agreement(self) -> float:
        """Images with the same class, in percent."""
        return 100 * (1 - self.disagreements / self.images)

    def within(self, tolerance: float) -> bool:
        """Return True if the error is at most ``tolerance``, of logits beyond 1 that part of the largest."""
        return self.max_error <= tolerance * max(1.0, self.largest_logit)

    def __add__(self, other: Parity) -> Parity:
        """Return what comparing both kinds of images says."""
        return Parity(
            self.images + other.images,
            max(self.max_error, other.max_error),
            max(self.largest_logit, other.largest_logit),
            self.disagreements + other.disagreements,
        )


def compare(deployed: Deployed, run: Runner, pixels: np.ndarray) -> Parity:
    """Compare a file with the network, on the first image alone and then on batches.

    Args:
        deployed: The network.
        run: Runs the file on what the network takes.
        pixels: Images, (n, H, W, 3) uint8, at least one.

    Raises:
        UserError: The network's own answers are not numbers.
    """
    parities = [_compare(reference_logits(deployed, batch), run(deployed.input(batch))) for batch in _batches(pixels)]
    return sum(parities[1:], parities[0])


def reference_logits(deployed: Deployed, pixels: Tensor) -> Tensor:
    """Return the network's own answer, in plain PyTorch."""
    with torch.no_grad(), ops.use_kernels("reference"):
        logits = deployed(deployed.input(pixels))
    if not logits.isfinite().all():
        raise UserError("the network answers with NaN or infinite logits: there is nothing to compare a file with.")
    return logits


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize images, (n, H, W, 3) uint8, to (n, height, width, 3)."""
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height))) for image in pixels])


def _batches(pixels: np.ndarray) -> Iterator[Tensor]:
    for first, last in [(0, 1), *((start, start + _BATCH) for start in range(1, len(pixels), _BATCH))]:
        yield torch.from_numpy(np.ascontiguousarray(pixels[first:last]))


def _compare(expected: Tensor, logits: Tensor) -> Parity:
    if logits.shape != expected.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)} instead of {tuple(expected.shape)}")
    error = (logits - expected).abs().nan_to_num(nan=torch.inf).max().item()
    differ = int((logits.argmax(1) != expected.argmax(1)).sum())
    return Parity(len(expected), error, expected.abs().max().item(), differ)
