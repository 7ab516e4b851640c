"""Backbones by name: timm's with a stem for the image size, and the few it lacks.

``names`` says which there are without importing torch, ``cifar`` holds the ResNets for 32-pixel images. Imports
``attach``. Start with :func:`create_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.backbones.cifar import CifarResNet
    from csham.backbones.create import create_model
    from csham.backbones.names import BACKBONES

__all__ = ["BACKBONES", "CifarResNet", "create_model"]

__getattr__ = lazy_names(
    __name__,
    {
        "BACKBONES": "csham.backbones.names",
        "CifarResNet": "csham.backbones.cifar",
        "create_model": "csham.backbones.create",
    },
)
