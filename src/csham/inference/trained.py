"""A trained network with all that is needed to ask it, back from what was left of it on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from csham.backbones.zoo import is_in_zoo, zoo_folder
from csham.data.sources.named import NOT_MIRRORED
from csham.data.views import Views
from csham.errors import UserError
from csham.inference.modules import ModuleFacts, info_of
from csham.inference.shared import download, is_on_hub, is_shared, read_shared
from csham.inference.transform import ImageLike, ImageTransform
from csham.probing import evaluating, likeness, uncompiled
from csham.training.evaluation import averaged, find_weights, load_network
from csham.training.machine import choose_device
from csham.training.network import NetworkInfo, held_weights, read_network
from csham.training.run_folder import RunFolder, RunWeights, check_choice
from csham.training.sums import check_unchanged

__all__ = ["Trained", "as_trained", "load"]


@dataclass(frozen=True, eq=False)
class Trained:
    """Trained network, as :func:`csham.load` returns it, or any module by :meth:`of`.

    Attributes:
        network: From (B, 3, H, W) to logits, (B, classes); in evaluation mode, on its device. One of :meth:`of` is in
            the mode and of the type that it was given in.
        info: Names of backbone and attention, and the rest that is needed to build the network again.
        transform: Makes an input of an image.
        path: Path it was loaded from; None for a module of :meth:`of`.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose; ``"given"``
            for a module of :meth:`of`.
        epoch: After which these were; None where that is not known.
    """

    network: nn.Module
    info: NetworkInfo
    transform: ImageTransform
    path: Path | None
    weights: str
    epoch: int | None = None

    @classmethod
    def of(cls, network: nn.Module, **facts: Unpack[ModuleFacts]) -> Trained:
        """Take any classifier that was trained or loaded elsewhere.

        :func:`csham.explain`, :func:`csham.export` and :func:`csham.inference.predict` take a module with the same
        arguments themselves. It is used as it is: its mode, device, type and hooks stay, and it is asked in evaluation
        mode.

        Args:
            network: From (B, 3, H, W) to logits, (B, classes). It may be compiled, or wrapped in DDP.
            **facts: Facts that it does not say itself: ``image_size``, the side of its images in pixels; ``classes``,
                the name of each class in the order of the logits, by default its number; ``mean`` and ``std`` of each
                channel of its images, of values from 0 to 1. By default these are what timm says of its networks, else
                ImageNet's mean and deviation; ``(0, 0, 0)`` and ``(1, 1, 1)`` are none.

        Raises:
            UserError: It cannot be run, returns no logits, or what is said of it cannot be.

        Examples:
            >>> weights = torchvision.models.ResNet18_Weights.DEFAULT
            >>> model = torchvision.models.resnet18(weights=weights)
            >>> trained = csham.Trained.of(model, image_size=224, classes=weights.meta["categories"])
            >>> trained.probabilities(["cat.jpg"])
        """
        network = uncompiled(network)
        info = info_of(network, facts)
        return cls(network, info, ImageTransform(info.image_size, tuple(info.mean), tuple(info.std)), None, "given")

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
        return self.label if self.path is None else f"{self.label}, {self.run_weights}"

    @property
    def origin(self) -> str:
        """Path it was loaded from, or its label, for messages."""
        return self.label if self.path is None else str(self.path)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return likeness(self.network).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images that the network takes."""
        return likeness(self.network).dtype

    @property
    def label(self) -> str:
        """The network in a few words, such as ``"resnet18 + csham (transfer)"``."""
        return self.info.label

    def batch(self, images: Iterable[ImageLike]) -> Tensor:
        """Return images as one input of the network, (B, 3, S, S) on its device."""
        pixels = np.stack([self.transform.pixels(image) for image in images])
        return self.transform.normalise(torch.from_numpy(pixels).to(self.device)).to(self.dtype)

    def probabilities(self, images: Iterable[ImageLike], *, tta: bool = False) -> Tensor:
        """Return the probability of each class for each image, (B, classes) float32, on the CPU.

        Args:
            images: Files, images of Pillow, or arrays, (H, W, 3) uint8.
            tta: Take the mean over several views of each image (:attr:`views`).

        Raises:
            UserError: With ``tta``, if there is but one view.
        """
        ask, cut = (
            (averaged(self.network, self.views), self.transform.square)
            if tta
            else (self.network, self.transform.pixels)
        )
        pixels = torch.from_numpy(np.stack([cut(image) for image in images]))
        with evaluating(self.network):
            logits: Tensor = ask(self.transform.normalise(pixels.to(self.device)).to(self.dtype))
        return logits.float().softmax(1).cpu()

    @property
    def views(self) -> Views:
        """Views of an image for test-time augmentation, as this run's images are prepared.

        Mirrored are those of a run whose training mirrors; weights without their run do not say whether it did.

        Raises:
            UserError: There is but one.
        """
        run = None if self.path is None else RunFolder(self.path)
        mirrored = run is not None and run.config_file.is_file() and run.read_config().data not in NOT_MIRRORED
        return Views(self.info.image_size, mirrored)


def as_trained(network: Trained | nn.Module, facts: ModuleFacts) -> Trained:
    """Return what :func:`csham.load` returned, or a module as :meth:`Trained.of` takes it.

    Raises:
        UserError: It is neither, or facts are given that the first knows itself.
    """
    if not isinstance(network, Trained):
        return Trained.of(network, **facts)
    if facts:
        raise UserError(f"{', '.join(facts)}: what csham.load returned knows that itself. They are for a module.")
    return network


def load(path: Path | str, *, weights: str | None = None, device: str | None = "cpu") -> Trained:
    """Load a trained network, its classes and its preprocessing.

    Nothing in the files is run, since anyone may have written them: values are checked, weights are read as numbers,
    and the network is one that csham, timm or torchvision has under its name. An attention of your own has to be
    registered before (:func:`csham.register_attention`).

    Args:
        path: A run folder; a folder that ``csham share`` wrote; such a folder on the Hugging Face Hub,
            ``"hf:user/name"`` or ``"hf:user/name@revision"``; one that comes with the package, ``"zoo:name"``; or a
            file ``model.safetensors`` of one.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose. A shared
            folder and a file have one of both. None takes a run's last, and else what is there;
            :attr:`Trained.weights` says which.
        device: Such as ``"cuda"``; None takes what this machine has.

    Raises:
        UserError: Nothing like that is there, or it is damaged.

    Examples:
        >>> trained = csham.load("runs/digits-resnet20-csham")
        >>> logits = trained.network(trained.batch(["a.png", "b.jpg"]))
        >>> names = [trained.classes[index] for index in logits.argmax(1)]
    """
    check_choice(weights)
    path = _place(path)
    if path.is_file():
        _check_ending(path)
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


_ELSEWHERE = {
    ".onnx": "onnxruntime runs it",
    ".pt2": "torch.export.load opens it",
    **dict.fromkeys((".pt", ".pth", ".ckpt"), "csham train --weights-file begins with its weights"),
}


def _check_ending(path: Path) -> None:
    """Refuse a file that another program opens."""
    if path.suffix.lower() in _ELSEWHERE:
        raise UserError(
            f"{path}: csham loads a run folder, one that csham share wrote, or a file model.safetensors. This is none "
            f"of them; {_ELSEWHERE[path.suffix.lower()]}."
        )


def _place(path: Path | str) -> Path:
    """Return where the files are, which come from the Hub first if they have to."""
    if is_in_zoo(path):
        return zoo_folder(path)
    return download(str(path)) if is_on_hub(path) else Path(path)
