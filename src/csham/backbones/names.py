"""Which backbones there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from csham._named import Named, table

__all__ = ["BACKBONES", "BackboneName"]


@dataclass(frozen=True)
class BackboneName(Named):
    """One backbone.

    Attributes:
        params: Its parameters for 100 classes and 32-pixel images.
        depth: Weight layers, for the CIFAR ResNets; None for timm's.
    """

    params: int
    depth: int | None = None


_HE = "He et al., CVPR 2016"
_CIFAR = "ResNet for 32-pixel images, 16 to 64 channels"

BACKBONES = table(
    [
        BackboneName("resnet20", _CIFAR, f"{_HE}, section 4.2", 278_324, 20),
        BackboneName("resnet32", _CIFAR, f"{_HE}, section 4.2", 472_756, 32),
        BackboneName("resnet44", _CIFAR, f"{_HE}, section 4.2", 667_188, 44),
        BackboneName("resnet56", _CIFAR, f"{_HE}, section 4.2", 861_620, 56),
        BackboneName("resnet110", _CIFAR, f"{_HE}, section 4.2", 1_736_564, 110),
        BackboneName("resnet14", "the same, two blocks a stage: for demonstrations", f"after {_HE}", 181_108, 14),
        BackboneName("resnet18", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)", 11_220_132),
        BackboneName("resnet34", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)", 21_328_292),
        BackboneName("resnet50", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)", 23_705_252),
    ]
)
