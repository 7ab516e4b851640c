"""Networks to attach to, with the attachment points that their architectures have.

Small members of their families. For each: how to build it, how many points ``auto`` finds, and how that number follows
from the published architecture (blocks that add, where blocks add; else modules that join branches; else layers).
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Network:
    library: str
    name: str
    points: int
    why: str
    side: int = 64  # pixels of the images that the tests show it
    heavy: bool = False  # takes long to train a step; another of its family is light

    @property
    def id(self):
        return f"{self.library}-{self.name}"

    def build(self):
        torch.manual_seed(1)
        if self.library == "timm":
            import timm

            if not timm.is_model(self.name):
                pytest.skip(f"timm {timm.__version__} has no {self.name}")
            return timm.create_model(self.name, num_classes=5)
        if self.library == "torchvision":
            import torchvision

            quiet = {"init_weights": True, "aux_logits": False} if self.name in ("googlenet", "inception_v3") else {}
            return torchvision.models.get_model(self.name, num_classes=5, **quiet)
        return {"functional": FunctionalNet, "nested": NestedNet}[self.name]()


class FunctionalNet(nn.Module):
    """Everything is added and activated by functions, in one forward; two of the three blocks add."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding=1)
        self.fourth = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(torch.add(x, self.second(F.relu(self.first(x)))))
        x = F.relu(self.down(x))
        x = F.relu(self.fourth(F.relu(self.third(x))) * 0.5 + x)
        return self.head(x.mean((2, 3)))


class _Add(nn.Module):
    def forward(self, x, y):
        return x + y


class _Unit(nn.Module):
    """Adds through a module, in place, after a projection where the shape changes; shares one activation."""

    def __init__(self, in_channels, channels, act, add):
        super().__init__()
        stride = 1 if in_channels == channels else 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )
        self.way_round = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, channels, 1, stride)
        self.act = act
        self.add = add

    def forward(self, x):
        return self.act(self.add(self.body(x), self.way_round(x)))


class NestedNet(nn.Module):
    """Blocks below two levels of containers that are never called, one addition module and one activation for all."""

    def __init__(self):
        super().__init__()
        act, add = nn.ReLU(), _Add()
        self.groups = nn.ModuleDict(
            {
                "shallow": nn.ModuleList([_Unit(3, 8, act, add), _Unit(8, 8, act, add)]),
                "deep": nn.ModuleList([_Unit(8, 16, act, add), _Unit(16, 16, act, add), _Unit(16, 16, act, add)]),
            }
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        for group in self.groups.values():
            for unit in group:
                x = unit(x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


# Settings of timm's ResNets that make them narrow: what a test then computes is little, and what it finds is the same.
NARROW = {"channels": (16, 32, 48, 64)}


def _timm(name, points, why, **more):
    return Network("timm", name, points, why, **more)


def _torchvision(name, points, why, **more):
    return Network("torchvision", name, points, why, **more)


NETWORKS = [
    Network("own", "functional", 2, "two blocks add"),
    Network("own", "nested", 5, "2 + 3"),
    _timm("resnet10t", 4, "1 + 1 + 1 + 1 basic blocks"),
    _timm("resnet26", 8, "2 + 2 + 2 + 2 bottlenecks"),
    _timm("seresnet18", 8, "2 + 2 + 2 + 2, after their own SE"),
    _timm("resnext26ts", 8, "2 + 2 + 2 + 2"),
    _timm("resnetv2_50", 16, "3 + 4 + 6 + 3 pre-activation bottlenecks"),
    _timm("res2net50_14w_8s", 16, "3 + 4 + 6 + 3; the additions within a block do not count", heavy=True),
    _timm("skresnet18", 8, "2 + 2 + 2 + 2; the sums of selective kernels do not count"),
    _timm("resnest14d", 4, "1 + 1 + 1 + 1; the sums of splits do not count"),
    _timm("regnetx_002", 13, "1 + 1 + 4 + 7"),
    _timm("regnety_002", 13, "1 + 1 + 4 + 7, after their own SE"),
    _timm("mobilenetv1_100", 14, "no additions: the stem and 13 separable convolutions"),
    _timm("mobilenetv2_050", 10, "17 blocks less the 7 that change shape"),
    _timm("mobilenetv3_large_100", 10, "15 blocks less the 5 that change shape"),
    _timm("mobilenetv4_conv_small", 10, "5 + 5 universal blocks of stride 1 and equal width"),
    _timm("efficientnet_b0", 9, "16 blocks less the first of each of 7 stages"),
    _timm("tf_efficientnetv2_b0", 15, "21 blocks less the first of each of 6 stages"),
    _timm("convnext_atto", 12, "2 + 2 + 6 + 2"),
    _timm("convnextv2_atto", 12, "2 + 2 + 6 + 2"),
    _timm("densenet121", 4, "no additions: 4 dense blocks"),
    _timm("vgg11_bn", 8, "no additions: 8 convolutions", heavy=True),
    _timm("ghostnet_050", 16, "16 ghost bottlenecks, all add"),
    _timm("mnasnet_small", 10, "1 of the first stage, and 1 + 3 + 3 + 2 of those that keep their shape"),
    _timm("cspresnet50", 13, "3 + 3 + 5 + 2"),
    _timm("cspdarknet53", 23, "1 + 2 + 8 + 8 + 4", heavy=True),
    _timm("dla34", 12, "2 + 4 + 4 + 2 basic blocks"),
    _timm("repvgg_a0", 17, "1 + 3 + 13 + 0 blocks with an identity branch", heavy=True),
    _timm("nfnet_l0", 12, "1 + 2 + 6 + 3", heavy=True),
    _timm("hrnet_w18_small", 23, "1 bottleneck, 2 blocks on each of 2, 3 and 4 branches, 4 of the head", heavy=True),
    _timm("inception_v3", 11, "no additions: 3 A, 1 B, 4 C, 1 D, 2 E", side=128, heavy=True),
    _timm("inception_v4", 19, "no additions: 3 of the stem, 4 A, 7 B, 3 C, 2 reductions", side=128, heavy=True),
    _timm("inception_resnet_v2", 40, "10 + 20 + 9 + 1", side=128, heavy=True),
    _timm("legacy_xception", 12, "12 blocks with shortcuts", side=128),
    _timm("xception41", 12, "3 + 8 + 1 modules with shortcuts, the last has none", heavy=True),
    _timm("rexnet_100", 11, "16 blocks less the first, which narrows, and 4 of stride 2; the rest add to a part"),
    _timm("hardcorenas_a", 5, "5 stages of 2 blocks less the first of each"),
    _timm("edgenext_xx_small", 9, "2 + 2 + 6 + 2 blocks; 3 of them end in a module that they call twice"),
    _timm("dpn48b", 16, "3 + 4 + 6 + 3"),
    _timm("ese_vovnet19b_dw", 4, "no additions: 4 one-shot aggregations"),
    _timm("hgnet_tiny", 5, "1 + 1 + 2 + 1 aggregations, of which one adds"),
    _timm("lcnetv2_small", 11, "2 + 2 + 4 + 2 blocks, of which one adds, and the stem's"),
    _torchvision("resnet18", 8, "2 + 2 + 2 + 2"),
    _torchvision("resnext50_32x4d", 16, "3 + 4 + 6 + 3", heavy=True),
    _torchvision("mobilenet_v2", 10, "17 blocks less the 7 that change shape"),
    _torchvision("mobilenet_v3_small", 6, "11 blocks less the 5 that change shape"),
    _torchvision("shufflenet_v2_x0_5", 16, "no additions: 4 + 8 + 4 shuffle units"),
    _torchvision("densenet121", 4, "no additions: 4 dense blocks"),
    _torchvision("vgg11_bn", 8, "no additions: 8 convolutions", heavy=True),
    _torchvision("alexnet", 5, "no additions: 5 convolutions", side=128),
    _torchvision("googlenet", 9, "no additions: 2 + 5 + 2 inception modules"),
    _torchvision("inception_v3", 11, "no additions: 3 A, 1 B, 4 C, 1 D, 2 E", side=128, heavy=True),
    _torchvision("mnasnet0_5", 10, "stacks of 3, 3, 3, 2, 4 and 1 less the first of each"),
    _torchvision("regnet_x_400mf", 22, "1 + 2 + 7 + 12"),
    _torchvision("efficientnet_b0", 9, "16 blocks less the first of each of 7 stages"),
    _torchvision("convnext_tiny", 18, "3 + 3 + 9 + 3"),
    _torchvision("squeezenet1_1", 8, "no additions: 8 fire modules", side=128),
]
