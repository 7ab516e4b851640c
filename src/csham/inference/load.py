"""A trained network back from what was left of it on disk."""

from __future__ import annotations

from pathlib import Path

from csham._lazy import make_callable
from csham.errors import UserError
from csham.inference.hub import download, is_on_hub
from csham.inference.shared import is_shared, read_shared
from csham.inference.trained import Trained
from csham.inference.transform import ImageTransform
from csham.training.evaluation import find_weights, load_network
from csham.training.machine import choose_device
from csham.training.network import held_weights, read_network
from csham.training.run_folder import RunFolder
from csham.training.run_weights import check_choice
from csham.training.sums import check_unchanged

__all__ = ["load"]


def load(path: Path | str, *, weights: str | None = None, device: str | None = "cpu") -> Trained:
    """Load a trained network, its classes and its preprocessing.

    Nothing in the files is run, since anyone may have written them: values are checked, weights are read as numbers,
    and the network is one that csham, timm or torchvision has under its name.

    Args:
        path: A run folder; a folder that ``csham share`` wrote; such a folder on the Hugging Face Hub,
            ``"hf:user/name"`` or ``"hf:user/name@revision"``; or a file ``model.safetensors`` of one.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose. A shared
            folder and a file have one of both. None takes a run's last, and else what is there;
            :attr:`Trained.weights` says which.
        device: Such as ``"cuda"``; None takes what this machine has.

    Raises:
        UserError: Nothing like that is there, or it is damaged.

    Example:
        >>> trained = csham.load("runs/digits-resnet20-csham")
        >>> logits = trained.network(trained.batch(["a.png", "b.jpg"]))
        >>> names = [trained.classes[index] for index in logits.argmax(1)]
    """
    check_choice(weights)
    path = download(str(path)) if is_on_hub(path) else Path(path)
    if path.is_file():
        check_unchanged(path, "Take it anew from where it came from.", by_itself=True)
        (network, info), held = read_network(path), held_weights(path)
    elif is_shared(path):
        network, info, held = read_shared(path)
    else:
        held = find_weights(RunFolder(path), weights)
        network, info = load_network(RunFolder(path), held.name)
    if weights not in (None, held.name):
        raise UserError(f"{path} holds the {held.name} weights of its run, no others. The run folder has both.")
    transform = ImageTransform(info.image_size, tuple(info.mean), tuple(info.std))
    return Trained(network.eval().to(choose_device(device or "auto")), info, transform, path, held.name, held.epoch)


make_callable(__name__)  # an import of this module leaves it under the function's name in its package
