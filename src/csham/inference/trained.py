"""A trained network with all that is needed to ask it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csham.inference.transform import ImageLike, ImageTransform
from csham.training.network import NetworkInfo
from csham.training.run_weights import RunWeights

__all__ = ["Trained"]


@dataclass(frozen=True, eq=False)
class Trained:
    """Trained network, as :func:`csham.load` returns it.

    Attributes:
        network: From (B, 3, H, W) to logits, (B, classes); in evaluation mode, on its device.
        info: Names of backbone and attention, and the rest that is needed to build the network again.
        transform: Makes an input of an image.
        path: Path it was loaded from.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose.
        epoch: After which these were; None where that is not known.
    """

    network: nn.Module
    info: NetworkInfo
    transform: ImageTransform
    path: Path
    weights: str
    epoch: int | None = None

    @property
    def classes(self) -> list[str]:
        """Name of each class, in the order of the logits."""
        return self.info.classes

    @property
    def run_weights(self) -> RunWeights:
        """Weights of its run that it has."""
        return RunWeights(self.weights, self.epoch)

    @property
    def described(self) -> str:
        """The network and its weights, such as ``"resnet18 + csham (transfer), last epoch (30)"``."""
        return f"{self.label}, {self.run_weights}"

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def label(self) -> str:
        """The network in a few words, such as ``"resnet18 + csham (transfer)"``."""
        return self.info.label

    def batch(self, images: Iterable[ImageLike]) -> Tensor:
        """Return images as one input of the network, (B, 3, S, S) on its device."""
        pixels = np.stack([self.transform.pixels(image) for image in images])
        return self.transform.normalise(torch.from_numpy(pixels).to(self.device))

    @torch.no_grad()
    def probabilities(self, images: Iterable[ImageLike]) -> Tensor:
        """Return the probability of each class for each image, (B, classes) float32, on the CPU."""
        return self.network(self.batch(images)).float().softmax(1).cpu()
