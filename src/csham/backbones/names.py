"""Which backbones there are; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BACKBONES", "BackboneName"]


@dataclass(frozen=True)
class BackboneName:
    """One backbone as a user names it.

    Attributes:
        name: What ``create_model`` and ``--backbone`` take.
        summary: What it is, in a few words.
        source: Paper, and the code it comes from.
        depth: Weight layers, for the CIFAR ResNets; None for timm's.
    """

    name: str
    summary: str
    source: str
    depth: int | None = None


_HE = "He et al., CVPR 2016"

BACKBONES = {
    entry.name: entry
    for entry in (
        *(
            BackboneName(
                f"resnet{depth}",
                "ResNet for 32-pixel images, 16 to 64 channels",
                f"{_HE}, section 4.2",
                depth,
            )
            for depth in (20, 32, 44, 56, 110)
        ),
        BackboneName("resnet14", "the same, two blocks a stage: for demonstrations and tests", f"after {_HE}", 14),
        BackboneName("resnet18", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)"),
        BackboneName("resnet34", "ResNet, 64 to 512 channels, basic blocks", f"{_HE} (timm)"),
        BackboneName("resnet50", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)"),
    )
}
