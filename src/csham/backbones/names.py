"""Which backbones there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["BACKBONES", "BackboneName"]


@dataclass(frozen=True)
class BackboneName(Named):
    """One backbone.

    Attributes:
        depth: Weight layers, for the CIFAR ResNets; None for timm's.
    """

    depth: int | None = None


_HE = "He et al., CVPR 2016"
_CIFAR = "ResNet for 32-pixel images, 16 to 64 channels"

BACKBONES = table(
    [
        *(BackboneName(f"resnet{depth}", _CIFAR, f"{_HE}, section 4.2", depth) for depth in (20, 32, 44, 56, 110)),
        BackboneName("resnet14", "the same, two blocks a stage: for demonstrations and tests", f"after {_HE}", 14),
        BackboneName("resnet18", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)"),
        BackboneName("resnet34", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)"),
        BackboneName("resnet50", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)"),
    ]
)
