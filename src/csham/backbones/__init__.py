"""Backbones by name: timm's and torchvision's with a stem for the image size, and the few they lack.

``names`` says which there are, ``scale`` how a name asks for another width or depth, both without importing torch;
``lookup`` says what a name means, ``spec`` what a network with its attention is, ``own`` takes a user's. ``cifar`` and
``lenet`` hold csham's own, ``libraries`` builds the others, ``small`` fits them to 32 pixels, ``weights`` loads local
files, ``zoo`` knows where those that come with the package are. Imports ``attach``. Start with :func:`create_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.backbones.cifar import CifarResNet, WideResNet
    from csham.backbones.create import create_model
    from csham.backbones.lenet import LeNet5
    from csham.backbones.lookup import check_backbone
    from csham.backbones.names import BACKBONES
    from csham.backbones.own import register_backbone

__all__ = [
    "BACKBONES",
    "CifarResNet",
    "LeNet5",
    "WideResNet",
    "check_backbone",
    "create_model",
    "register_backbone",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BACKBONES": "csham.backbones.names",
        "CifarResNet": "csham.backbones.cifar",
        "LeNet5": "csham.backbones.lenet",
        "WideResNet": "csham.backbones.cifar",
        "check_backbone": "csham.backbones.lookup",
        "create_model": "csham.backbones.create",
        "register_backbone": "csham.backbones.own",
    },
)
