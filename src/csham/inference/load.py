"""A trained network back from what was left of it on disk."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from csham._lazy import make_callable
from csham.errors import UserError, unknown_name
from csham.inference.hub import download, is_on_hub
from csham.inference.shared import is_shared, read_shared
from csham.inference.trained import Trained
from csham.inference.transform import ImageTransform
from csham.training.evaluation import load_network
from csham.training.machine import choose_device
from csham.training.network import NetworkInfo, read_network
from csham.training.run_folder import RunFolder

__all__ = ["load"]


def load(path: Path | str, *, weights: str = "best", device: str | None = "cpu") -> Trained:
    """Load a trained network, its classes and its preprocessing.

    Nothing in the files is run, whoever wrote them: values are checked, weights are read as numbers, and the network is
    one that csham, timm or torchvision has under its name.

    Args:
        path: A run folder; a folder that ``csham share`` wrote; such a folder on the Hugging Face Hub,
            ``"hf:user/name"`` or ``"hf:user/name@revision"``; or a file ``model.safetensors`` of one.
        weights: ``"best"``, those that the validation part chose, or ``"last"``, those of the last epoch, which only a
            run folder has. A shared folder has one of both: ``"best"`` takes it, whichever it is, and
            :attr:`Trained.weights` says which.
        device: Such as ``"cuda"``; None takes what this machine has.

    Raises:
        UserError: Nothing like that is there, or it is damaged.

    Example:
        >>> trained = csham.load("runs/digits-resnet20-csham")
        >>> logits = trained.network(trained.batch(["a.png", "b.jpg"]))
        >>> names = [trained.classes[index] for index in logits.argmax(1)]
    """
    if weights not in ("best", "last"):
        raise unknown_name("weights", weights, ("best", "last"))
    path = download(str(path)) if is_on_hub(path) else Path(path)
    if path.is_file():
        network, info = _read_file(path, weights)
    elif is_shared(path):
        network, info, held = read_shared(path)
        if weights == "last" != held:
            raise UserError(f"{path} holds the {held} weights of its run, no others.")
        weights = held
    else:
        network, info = load_network(RunFolder(path), weights)
    transform = ImageTransform(info.image_size, tuple(info.mean), tuple(info.std))
    return Trained(network.eval().to(choose_device(device or "auto")), info, transform, path, weights)


def _read_file(path: Path, weights: str) -> tuple[nn.Module, NetworkInfo]:
    if weights != "best":
        raise UserError(f"{path} holds one set of weights. Give the run folder for its {weights} ones.")
    return read_network(path)


make_callable(__name__)  # an import of this module leaves it under the function's name in its package
