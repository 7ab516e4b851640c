"""The loss that training minimises; what is measured afterwards is plain cross-entropy, of every image alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csham.training.config import TrainConfig

__all__ = ["TrainingLoss", "balanced_weights"]

_MIXED = (
    "training images are mixed: training loss and top-1 are of mixtures, top-1 by the class that most of one is of; "
    "they say less than those of the validation part"
)


@dataclass(frozen=True)
class TrainingLoss:
    """Cross-entropy of a training batch, mean over its images.

    With class weights, an image's loss is multiplied by the weight of its class, and that of a mixed image is the
    mean of its two classes' losses by their shares, each times its weight. The sum is divided by the number of images
    and not, as :class:`torch.nn.CrossEntropyLoss` does, by the sum of their weights: the loss of a batch is then the
    mean of those of its parts, on however many processes they are.

    Attributes:
        label_smoothing: Share of a target that is spread over all classes.
        weights: Weight of each class, (classes,) float32, on the device; None counts every image alike.
        notes: Say how it differs from the other losses.
    """

    label_smoothing: float = 0.0
    weights: Tensor | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: TrainConfig, labels: np.ndarray, classes: Sequence[str], device: torch.device) -> TrainingLoss:
        """Make the loss that the settings ask for.

        Args:
            config: The settings.
            labels: Class of each image of the training part, (n,).
            classes: Names of the classes.
            device: Where the loss is computed.
        """
        notes = (_MIXED,) if config.mixup or config.cutmix else ()
        if config.class_weights == "none":
            return cls(config.label_smoothing, notes=notes)
        weights = balanced_weights(labels, len(classes))
        least, most = int(weights.argmin()), int(weights.argmax())
        said = f"class weights from {weights[least]:.3g} ({classes[least]}) to {weights[most]:.3g} ({classes[most]})"
        return cls(config.label_smoothing, torch.from_numpy(weights).to(device, torch.float32), (*notes, said))

    def __call__(self, logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: (B, classes) float32.
            labels: (B,) int64.
            targets: Of a batch that has been mixed, (B, classes) float32; they count then.
        """
        if self.weights is None:
            expected = labels if targets is None else targets
            return F.cross_entropy(logits, expected, label_smoothing=self.label_smoothing)
        if targets is None:
            classes = torch.arange(len(self.weights), device=labels.device)
            targets = (labels[:, None] == classes).to(logits)  # F.one_hot looks at the labels, on the host
        shares = targets * self.weights
        # Smoothed here, by what an image weighs: torch would give every class a share times its own weight, so that
        # of hundreds of frequent images most of what is spread went to the rarest class.
        smoothed = (1 - self.label_smoothing) * shares + self.label_smoothing * shares.mean(1, keepdim=True)
        return F.cross_entropy(logits, smoothed)


def balanced_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weigh each class by n / (k n_c): all classes count alike, and the mean over the n images is 1.

    As scikit-learn's ``compute_class_weight("balanced", ...)``, k counts the classes that have images. The others
    weigh 1.

    Args:
        labels: Class of each image, (n,).
        classes: Number of classes.

    Returns:
        (classes,) float64.
    """
    counts = np.bincount(labels, minlength=classes)
    there = counts > 0
    return np.where(there, len(labels) / (there.sum() * np.maximum(counts, 1)), 1.0)
