"""Names of the backbones; importable without torch, which libraries are asked for theirs with."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

from csham._named import Named, table

__all__ = ["BACKBONES", "LIBRARIES", "BackboneName", "names_in"]

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks are backbones too."""


@dataclass(frozen=True)
class BackboneName(Named):
    """One backbone.

    Attributes:
        params: Its parameters for 100 classes and 32-pixel images.
        published: Published counts of that, as printed; empty if unknown.
        note: Reason why the two differ by more than a hundredth.
        library: Library it comes from: ``"timm"``, ``"torchvision"``, ``"csham"``, or ``"own"`` for the user's own.
        made_from: Its name there, if that is another one.
        depth: Weight layers, for csham's own ResNets.
        width: Factor on the channels, for csham's wide ResNets.
        min_size: Smallest side of the images, in pixels.
    """

    params: int
    published: str = ""
    note: str = ""
    library: str = "timm"
    made_from: str = ""
    depth: int | None = None
    width: int | None = None
    min_size: int = 1

    @property
    def has_published_weights(self) -> bool:
        """True if ``pretrained=True`` can mean something."""
        return self.library != "csham" and not self.made_from


_HE = "He et al., CVPR 2016"
_XIE = "Xie et al., CVPR 2017 (timm)"
_HUANG = "Huang et al., CVPR 2017 (timm)"
_SIMONYAN = "Simonyan & Zisserman, ICLR 2015 (timm)"
_ZAGORUYKO = "Zagoruyko & Komodakis, BMVC 2016"

_UNGROUPED = "published: every block's first 1x1 convolution in 32 groups too, which the paper's is not"
_ROUNDED = "published: rounded down"


def _cifar_resnet(depth: int, params: int, published: str) -> BackboneName:
    summary, note = "ResNet for 32 pixels, 16 to 64 channels", "published: for 10 classes, shortcuts without weights"
    return BackboneName(
        f"resnet{depth}", summary, f"{_HE}, section 4.2", params, published, note, library="csham", depth=depth
    )


def _wide_resnet(depth: int, width: int, params: int, published: str) -> BackboneName:
    summary = f"wide ResNet for 32 pixels, {16 * width} to {64 * width} channels"
    return BackboneName(
        f"wrn{depth}_{width}", summary, _ZAGORUYKO, params, published, library="csham", depth=depth, width=width
    )


def _vgg(depth: int, params: int, published: str) -> BackboneName:
    return BackboneName(f"vgg{depth}_bn", "VGG with batch norm", _SIMONYAN, params, published, min_size=32)


def _densenet(depth: int, params: int, published: str = "", note: str = "") -> BackboneName:
    return BackboneName(f"densenet{depth}", "DenseNet-BC", _HUANG, params, published, note, min_size=8)


BACKBONES = table(
    [
        BackboneName(
            "lenet5",
            "LeNet-5 with tanh and max pooling",
            "LeCun et al., Proc. IEEE 1998",
            69_656,
            library="csham",
            min_size=16,
        ),
        _cifar_resnet(20, 278_324, "0.27M"),
        _cifar_resnet(32, 472_756, "0.46M"),
        _cifar_resnet(44, 667_188, "0.66M"),
        _cifar_resnet(56, 861_620, "0.85M"),
        _cifar_resnet(110, 1_736_564, "1.7M"),
        BackboneName(
            "resnet14",
            "the same, two blocks a stage: for demonstrations",
            f"after {_HE}",
            181_108,
            library="csham",
            depth=14,
        ),
        _wide_resnet(16, 8, 11_007_540, "11.0M"),
        _wide_resnet(28, 10, 36_536_884, "36.5M"),
        _wide_resnet(40, 4, 8_972_340, "8.9M"),
        _wide_resnet(40, 10, 55_899_444, "55.9M"),
        BackboneName("resnet18", "ResNet, 64 to 512 channels", f"{_HE} (timm)", 11_220_132, "11.2M"),
        BackboneName("resnet34", "ResNet, 64 to 512 channels", f"{_HE} (timm)", 21_328_292, "21.3M"),
        BackboneName("resnet50", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)", 23_705_252, "23.7M"),
        BackboneName("resnet101", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)", 42_697_380, "42.7M"),
        BackboneName("resnet152", "ResNet, 256 to 2048 channels, bottlenecks", f"{_HE} (timm)", 58_341_028, "58.3M"),
        BackboneName("resnext50_32x4d", "ResNeXt, 32 groups", _XIE, 23_177_124, "14.8M", _UNGROUPED),
        BackboneName("resnext101_32x4d", "ResNeXt, 32 groups", _XIE, 42_325_924, "25.3M", _UNGROUPED),
        BackboneName(
            "resnext50_grouped",
            "ResNeXt-50 as published tables for CIFAR have it",
            f"after {_XIE}",
            14_788_772,
            "14.8M",
            "every block's first 1x1 convolution in 32 groups too, at every image size",
            made_from="resnext50_32x4d",
        ),
        BackboneName(
            "resnext101_grouped",
            "ResNeXt-101 as published tables for CIFAR have it",
            f"after {_XIE}",
            25_303_204,
            "25.3M",
            "every block's first 1x1 convolution in 32 groups too, at every image size",
            made_from="resnext101_32x4d",
        ),
        BackboneName("wide_resnet50_2", "ResNet-50, bottlenecks twice as wide", f"{_ZAGORUYKO} (timm)", 67_031_460),
        BackboneName("wide_resnet101_2", "ResNet-101, bottlenecks twice as wide", f"{_ZAGORUYKO} (timm)", 125_034_916),
        _vgg(11, 28_518_244, "28.5M"),
        _vgg(13, 28_703_140, "28.7M"),
        _vgg(16, 34_015_396, "34.0M"),
        _vgg(19, 39_327_652, "39.0M"),
        BackboneName("mobilenetv2_100", "MobileNetV2", "Sandler et al., CVPR 2018 (timm)", 2_351_972, "2.36M"),
        _densenet(121, 7_048_676, "7.0M"),
        _densenet(161, 26_681_380, "26M", _ROUNDED),
        _densenet(169, 12_643_300),
        _densenet(201, 18_277_348, "18M", _ROUNDED),
        BackboneName(
            "googlenet",
            "GoogLeNet with batch norm",
            "Szegedy et al., CVPR 2015 (torchvision)",
            6_250_596,
            "6.2M",
            library="torchvision",
            min_size=2,
        ),
    ]
)


@cache
def names_in(library: str) -> frozenset[str]:
    """Return the classification networks of a library, which is imported; none if it is not installed."""
    if importlib.util.find_spec(library) is None:
        return frozenset()
    if library == "torchvision":
        import torchvision.models  # noqa: PLC0415  takes seconds to import

        return frozenset(torchvision.models.list_models(module=torchvision.models))
    import timm  # noqa: PLC0415

    return frozenset(timm.list_models())
