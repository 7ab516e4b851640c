"""A trained network back from what was left of it on disk."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from csham.errors import UserError, unknown_name
from csham.inference.trained import Trained
from csham.inference.transform import ImageTransform
from csham.training.checkpoints import load_weights
from csham.training.evaluation import load_network
from csham.training.machine import choose_device
from csham.training.network import NetworkInfo, read_weights
from csham.training.run_folder import RunFolder

__all__ = ["load"]


def load(path: Path | str, *, weights: str = "best", device: str | None = "cpu") -> Trained:
    """Load a trained network, its classes and its preprocessing.

    Args:
        path: A run folder, or a file ``model.safetensors`` of one.
        weights: ``"best"``, those that the validation part chose, or ``"last"``, those of the last epoch, which only a
            run folder has.
        device: Such as ``"cuda"``; None takes what this machine has.

    Raises:
        UserError: Nothing like that is there, or it is damaged.

    Example:
        >>> trained = csham.load("runs/digits-resnet20-csham")
        >>> logits = trained.network(trained.batch(["a.png", "b.jpg"]))
        >>> names = [trained.classes[index] for index in logits.argmax(1)]
    """
    path = Path(path)
    if weights not in ("best", "last"):
        raise unknown_name("weights", weights, ("best", "last"))
    network, info = _read_file(path, weights) if path.is_file() else load_network(RunFolder(path), weights)
    transform = ImageTransform(info.image_size, tuple(info.mean), tuple(info.std))
    return Trained(network.eval().to(choose_device(device or "auto")), info, transform, path, weights)


def _read_file(path: Path, weights: str) -> tuple[nn.Module, NetworkInfo]:
    if weights != "best":
        raise UserError(f"{path} holds one set of weights. Give the run folder for its {weights} ones.")
    info, values = read_weights(path)
    network = info.build()
    load_weights(network, values, f"{path} does not fit {info.backbone} with attention {info.attention}")
    return network, info
