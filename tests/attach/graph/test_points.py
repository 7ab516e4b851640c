"""Points by name, pattern, function and stage, and what is said when they cannot be."""

import sys

import numpy as np
import pytest
import torch
from timm.models.resnet import BasicBlock
from torch import nn

import csham
from csham.attach import install
from csham.backbones import CifarResNet


def small():
    torch.manual_seed(1)
    return CifarResNet(14, num_classes=3)


def found(**choice):
    return [point.name for point in csham.attach(small(), dry_run=True, **choice)]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ("layer2", ["layer2"]),
        ("layer?.1", ["layer1.1", "layer2.1", "layer3.1"]),
        ("layer3.*.bn[12]", ["layer3.0.bn1", "layer3.0.bn2", "layer3.1.bn1", "layer3.1.bn2"]),
        (["layer3", "conv1"], ["conv1", "layer3"]),
        (["layer1.0", "layer1.?"], ["layer1.0", "layer1.1"]),
        (("layer3", "layer3.1"), ["layer3.1", "layer3"]),
        (lambda name, module: name.endswith("conv1") and module.stride == (2, 2), ["layer2.0.conv1", "layer3.0.conv1"]),
    ],
)  # fmt: skip
def test_points_come_in_the_order_in_which_they_run(points, expected):
    assert found(points=points) == expected


def test_stages_choose_among_points_and_keep_their_numbers():
    assert found(stages=[1, 2]) == [f"layer{stage}.{block}.bn2" for stage in (2, 3) for block in (0, 1)]
    assert found(stages=-1) == ["layer3.0.bn2", "layer3.1.bn2"]
    assert found(stages=(0, -1), position="stage") == ["layer1.1", "layer3.1"]
    assert found(stages=range(2), points="layer?") == ["layer1", "layer2"]
    assert found(stages=np.int64(2)) == found(stages=np.array(2)) == found(stages=[-1])
    points = csham.attach(small(), dry_run=True, stages=[2])
    assert {point.stage for point in points} == {2}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"points": "layer5"}, "points='layer5' names no module of CifarResNet. Did you mean 'layer"),
        ({"points": "layer5"}, "Its stages: 0: layer1 (16 channels), 1: layer2 (32 channels), 2: layer3 (64 channels)"),
        ({"points": "blocks.*"}, "points='blocks.*' names no module"),
        ({"points": []}, "points= is empty"),
        ({"points": [3]}, "takes names of modules, a pattern or a function, got 3"),
        ({"points": 1}, "takes names of modules, a pattern or a function, got 1"),
        ({"points": nn.Sequential(nn.ReLU())}, "takes names of modules, a pattern or a function, got a Sequential"),
        ({"points": lambda name, module: False}, "points= chose none of the"),
        ({"points": "fc"}, "fc (Linear) puts out (1, 3), not a feature map"),
        ({"points": "layer1", "position": "post"}, "both position='post' and points= say where"),
        ({"stages": 3}, "stages=3 must be numbers of stages, from 0 to 2 here: 0: layer1 (16 channels)"),
        ({"stages": 1.0}, "stages=1.0 must be numbers of stages"),
        ({"stages": [-4]}, "must be numbers of stages"),
        ({"stages": [True]}, "must be numbers of stages"),
        ({"stages": np.array(1.5)}, "must be numbers of stages"),
        ({"stages": []}, "must be numbers of stages"),
        ({"stages": ["layer1"]}, "must be numbers of stages"),
        ({"input_size": 224}, "input_size must be (C, H, W), whole numbers from 1 on, got 224"),
        ({"input_size": (64, 64)}, "Pass input_size=(C, H, W) of its images"),
        ({"input_size": (3, 64.0, 64.0)}, "input_size must be (C, H, W)"),
        ({"input_size": (3, 0, 64)}, "input_size must be (C, H, W)"),
        ({"channels": 16}, "channels cannot be set: attention= says which"),
        ({"channels": 16, "name": "se"}, "name and channels cannot be set"),
    ],
)
def test_a_choice_that_cannot_be_is_named(choice, message):
    model = small()
    with pytest.raises(ValueError) as caught:
        csham.attach(model, **choice)
    assert message in str(caught.value)
    assert not any("attached" in name for name, _ in model.named_modules())


class Odd(nn.Module):
    """Has a module that never runs, one that is shared by two widths, and one that gives a pair."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)
        self.idle = nn.Conv2d(3, 3, 1)
        self.act = nn.ReLU()
        self.pair = Pair()

    def forward(self, x):
        x = self.act(self.second(self.act(self.first(x))))
        return self.pair(x)[0].mean((2, 3))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("idle", "idle (Conv2d) did not run when the network was run once"),
        ("act", "act (ReLU) is used in several places, with [4, 8] channels"),
        ("pair", "pair (Pair) puts out no single tensor, not a feature map"),
    ],
)
def test_modules_without_one_feature_map_are_named(points, message):
    with pytest.raises(ValueError) as caught:
        csham.attach(Odd(), points=points)
    assert message in str(caught.value)


def test_points_within_points_under_transfer_hand_weights_on():
    model = small().eval()
    points = csham.attach(
        model, strategy="transfer", points=["layer1.0.bn2", "layer1.0", "layer1", "layer2", "layer2.1"]
    )
    assert [(p.name, p.part) for p in points] == [
        ("layer1.0.bn2", "channel"), ("layer1.0", "spatial"), ("layer1", "channel"),
        ("layer2.1", "channel"), ("layer2", "spatial"),
    ]  # fmt: skip
    model(torch.randn(2, 3, 32, 32)).sum().backward()


class TwoStreams(nn.Module):
    """Two long branches side by side, joined once: all of it is one block."""

    def __init__(self):
        super().__init__()
        layer = lambda before: nn.Sequential(nn.Conv2d(before, 8, 3, 2, 1), nn.ReLU())  # noqa: E731
        self.color = nn.Sequential(layer(3), layer(8), layer(8))
        self.shape = nn.Sequential(layer(3), layer(8), layer(8))
        self.fuse = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.fuse(torch.cat([self.color(x), self.shape(x)], 1)).mean((2, 3)))


def test_a_single_point_says_what_else_could_be_named():
    with pytest.warns(UserWarning, match=r"found only one point in TwoStreams, fuse\. Name modules") as caught:
        points = csham.attach(TwoStreams(), "se", dry_run=True)
    assert [point.name for point in points] == ["fuse"]
    names = str(caught[0].message).partition("such as ")[2].rstrip(".").split(", ")
    assert len(names) > 1
    assert {point.name for point in csham.attach(TwoStreams(), "se", points=names, dry_run=True)} == set(names)


class Multiplies(nn.Module):
    """A block that joins by a product, of which nothing is known."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())

    def forward(self, x):
        return x * self.body(x)


def test_a_single_point_in_a_network_of_one_size_says_what_else_could_be_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *(Multiplies() for _ in range(6)), nn.AvgPool2d(16), nn.Flatten())
    with pytest.warns(UserWarning, match=r"found only one point in Sequential, 6\. Name modules .*such as .*4, 5"):
        csham.attach(model, "se", dry_run=True)


class Chooses(nn.Module):
    """Two experts, of which the images choose one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.experts = nn.ModuleList(nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        return self.experts[int(x.mean() > 100)](x).mean((2, 3))


def test_what_did_not_run_is_named_and_can_be_attached_to_by_itself():
    model = Chooses()
    with pytest.warns(
        UserWarning, match=r"2 modules of Chooses like .* such as experts\.1\.0 \(BasicBlock\), were not called"
    ):
        points = csham.attach(model, "se")
    assert [point.name for point in points] == ["experts.0.0.bn2", "experts.0.1.bn2"]
    assert len(csham.attach(model.experts[1], "se", input_size=(8, 16, 16))) == 2


class FoldsForEvaluation(nn.Module):
    """A block that makes one layer of two for evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.folded = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), None

    def train(self, mode=True):
        super().train(mode)
        self.folded = None if mode else nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)
        return self

    def forward(self, x):
        return x + (self.bn(self.conv(x)) if self.folded is None else self.folded(x))


def test_a_module_of_evaluation_alone_is_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), FoldsForEvaluation(), FoldsForEvaluation(), nn.Flatten()).train()
    with pytest.raises(ValueError, match=r"1\.folded is a module of Sequential in evaluation mode only"):
        csham.attach(model, "se")
    assert len(csham.attach(model, "se", position="post")) == 2


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, 8, 3, dtype=torch.cfloat) for channels in (3, 8))

    def forward(self, x):
        return self.second(self.first(x.to(torch.cfloat))).abs()


@pytest.mark.parametrize("choice", [{}, {"points": "first"}])
def test_complex_maps_are_named(choice):
    with pytest.raises(ValueError, match=r"\(Conv2d\) puts out complex numbers"):
        csham.attach(Complex(), "csham", **choice)


class OfABatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, batch):
        return self.net(batch["image"])


@pytest.mark.parametrize("size", [None, (3, 32, 32)])
def test_a_network_of_something_else_than_images_says_where_to_attach(size):
    with pytest.raises(ValueError, match="attach to the network within it that takes one") as caught:
        csham.attach(OfABatch(), input_size=size)
    assert ("Pass input_size" in str(caught.value)) == (size is None)


@pytest.mark.parametrize("attach", [install.attach, sys.modules["csham.attach"]], ids=["function", "room"])
def test_a_warning_names_the_line_of_the_caller(attach):
    with pytest.warns(UserWarning, match="found only one point") as caught:
        attach(TwoStreams(), "se", dry_run=True)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("choice", [{"position": "last"}, {"points": "fuse"}])
def test_a_single_point_that_was_asked_for_says_nothing(choice, recwarn):
    assert len(csham.attach(TwoStreams(), "se", dry_run=True, **choice)) == 1
    assert not recwarn.list


@pytest.mark.parametrize("side", [28, 32, 64, 96, 128, 160, 224, 256, 299, 384, 512])
def test_a_network_that_takes_images_of_one_common_side_alone(side):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * side * side, 2))
    assert [point.channels for point in csham.attach(model, "se", points="0")] == [2]


def test_a_network_of_a_few_layers_has_one_point_without_a_word(recwarn):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert len(csham.attach(model, "se", dry_run=True)) == 1
    assert not recwarn.list


def test_a_module_that_gives_its_parameter_alone_is_no_map_and_no_hindrance():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1, 16, 1, 1))

        def forward(self):
            return self.value

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.offset = small(), Offset()

        def forward(self, x):
            network = self.network
            x = network.layer1(network.conv1(x) + self.offset())
            return network.fc(network.layer3(network.layer2(x)).mean((2, 3)))

    points = csham.attach(Shifted(), dry_run=True)
    assert [point.name for point in points] == [f"network.{name}" for name in found()]


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


class SideBySide(nn.Module):
    """Two encoders whose maps are pooled, or put out, one by one."""

    def __init__(self, end):
        super().__init__()
        self.one, self.other = (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Adds(), Adds()) for _ in range(2))
        self.head = nn.Linear(16, 2)
        self.end = end

    def forward(self, x):
        ways = [way(x) for way in (self.one, self.other)]
        return dict(enumerate(ways)) if self.end == "maps" else self.head(torch.cat([w.mean((2, 3)) for w in ways], 1))


class TwoChains(nn.Module):
    """A chain of layers to each of two outputs; nothing adds."""

    def __init__(self, layers):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.other = (nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(n))) for n in layers)

    def forward(self, x):
        x = self.stem(x)
        return {"one": self.one(x), "other": self.other(x)}


@pytest.mark.parametrize("position", ["auto", "post", "stage", "last"])
def test_layers_that_lead_to_another_output_are_named(position):
    with pytest.warns(UserWarning, match=r"2 layers of TwoChains lead to other outputs .* points=, such as one\.1"):
        points = csham.attach(TwoChains([2, 2]), "se", position=position, dry_run=True)
    assert not any(point.name.startswith("one") for point in points)


def test_the_head_of_another_output_says_nothing(recwarn):
    csham.attach(TwoChains([1, 3]), "se", position="stage", dry_run=True)
    assert not recwarn.list


@pytest.mark.parametrize("position", ["stage", "last"])
def test_ways_beside_one_another_are_named_where_a_position_follows_one(position):
    with pytest.warns(UserWarning, match="2 of the 4 blocks of SideBySide, .* lead to other outputs"):
        points = csham.attach(SideBySide("maps"), "se", position=position, dry_run=True)
    assert all(point.name.startswith("other") for point in points)
    with pytest.raises(
        ValueError, match=r"several ways run beside one another .*position='post' \(4 points\), or name"
    ):
        csham.attach(SideBySide("logits"), "se", position=position, dry_run=True)
