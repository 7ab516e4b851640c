"""Backbones by name: parameters, shapes, stems, and pairing by seed."""

import os
import warnings

import pytest
import timm
import torch
from torch import nn

import csham
from csham.backbones import BACKBONES, CifarResNet
from csham.backbones.create import check_size
from csham.errors import UserError


def option_b_parameters(depth, classes):
    """By hand: 3x3 convolutions, two batch norms a block, two projections with batch norm, the classifier."""
    n = (depth - 2) // 6
    total = 3 * 16 * 9 + 2 * 16
    previous = 16
    for width in (16, 32, 64):
        for block in range(n):
            into = previous if block == 0 else width
            total += into * width * 9 + width * width * 9 + 4 * width
        if previous != width:
            total += previous * width + 2 * width
        previous = width
    return total + 64 * classes + classes


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_cifar_resnets_have_the_papers_layers(depth, count):
    model = CifarResNet(depth, num_classes=10)
    assert count(model) == option_b_parameters(depth, 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == depth
    # He et al., table 6, counts option A: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
    published = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}[depth]
    assert count(model) / 1e6 == pytest.approx(published, abs=0.04)


def test_the_cifar_block_is_timms():
    from timm.models.resnet import BasicBlock, downsample_conv

    model = CifarResNet(14)
    for into, block in ((16, model.layer2[0]), (64, model.layer3[1])):
        out, stride = block.conv2.out_channels, block.conv1.stride[0]
        shortcut = downsample_conv(into, out, 1, stride) if stride > 1 else None
        other = BasicBlock(into, out, stride, shortcut)
        other.load_state_dict(block.state_dict())
        x = torch.randn(2, into, 8, 8)
        assert torch.equal(block(x.clone()), other(x.clone()))


@pytest.mark.parametrize("name", ["resnet14", "resnet56", "resnet18", "resnet34"])
def test_backbones_with_attention_on_small_images(name):
    model = csham.create_model(name, num_classes=7, image_size=32, attention="csham", strategy="transfer").eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)


# Blocks that add where blocks add, inception modules, dense blocks, convolutions: as the architectures have them.
POINTS = {
    "lenet5": 2, "resnet20": 9, "resnet32": 15, "resnet44": 21, "resnet56": 27, "resnet110": 54, "resnet14": 6,
    "wrn16_8": 6, "wrn28_10": 12, "wrn40_4": 18, "wrn40_10": 18, "resnet18": 8, "resnet34": 16, "resnet50": 16,
    "resnet101": 33, "resnet152": 50, "resnext50_32x4d": 16, "resnext101_32x4d": 33, "resnext50_grouped": 16,
    "resnext101_grouped": 33, "wide_resnet50_2": 16, "wide_resnet101_2": 33, "vgg11_bn": 8, "vgg13_bn": 10,
    "vgg16_bn": 13, "vgg19_bn": 16, "mobilenetv2_100": 10, "densenet121": 4, "densenet161": 4, "densenet169": 4,
    "densenet201": 4, "googlenet": 9,
}  # fmt: skip


# A shallower one of the same family says the same.
LONG = [
    "wide_resnet101_2", "resnet152", "resnet101", "resnext101_32x4d", "resnext101_grouped", "resnet56", "resnet110",
    "densenet161", "densenet169", "densenet201", "wrn40_10",
]  # fmt: skip
LARGE = ["resnet18", "vgg11_bn", "mobilenetv2_100", "densenet121", "googlenet"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_size"), [*((n, 32) for n in BACKBONES), *((n, 224) for n in LARGE)])
def test_attention_finds_its_points_in_every_backbone(name, image_size):
    few = list(BACKBONES)[::3]
    if (name in LONG or (image_size == 32 and name not in few)) and not os.environ.get("CSHAM_ALL_NETWORKS"):
        pytest.skip("every third is built; CSHAM_ALL_NETWORKS=1 builds them all")
    with torch.device("meta"):
        model = csham.create_model(name, num_classes=10, image_size=image_size, attention="csham")
        assert sum(type(module).__name__ == "Attached" for module in model.modules()) == POINTS[name]
        assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 10)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_parameters_its_table_says(name, count):
    with torch.device("meta"):
        assert count(csham.create_model(name, num_classes=100, image_size=32)) == BACKBONES[name].params


def test_small_images_get_a_small_stem(count):
    small = csham.create_model("resnet18", num_classes=100, image_size=32)
    large = csham.create_model("resnet18", num_classes=100, image_size=224)
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert large.conv1.kernel_size == (7, 7)
    assert small.eval().forward_features(torch.randn(1, 3, 32, 32)).shape[-2:] == (4, 4)
    assert large.eval().forward_features(torch.randn(1, 3, 224, 224)).shape[-2:] == (7, 7)
    # the usual CIFAR ResNet-18 has 11.2M parameters
    assert count(small) == pytest.approx(11.2e6, rel=0.01)


@pytest.mark.parametrize("backbone", ["resnet20", "resnet18", "resnet18.a1_in1k", "torchvision/resnet18"])
def test_one_seed_gives_every_attention_the_same_backbone(backbone):
    def build(**settings):
        torch.manual_seed(5)
        return csham.create_model(backbone, num_classes=4, image_size=32, **settings).state_dict()

    plain = build()
    for settings in ({"attention": "se"}, {"attention": "csham", "strategy": "transfer", "gated": True}):
        with_attention = build(**settings)
        assert all(torch.equal(with_attention[key], value) for key, value in plain.items())


def test_other_numbers_of_image_channels():
    for name in ("resnet20", "resnet18"):
        model = csham.create_model(name, in_chans=1, num_classes=3, image_size=32, attention="csham").eval()
        assert model(torch.randn(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet21"}, "unknown backbone 'resnet21'. Did you mean 'resnet"),
        ({"backbone": "resnet20", "attention": "cbm"}, "Did you mean 'cbam'"),
        ({"backbone": "resnet20", "attention": "csham", "strategy": "x"}, "unknown strategy 'x'"),
        ({"backbone": "resnet20", "position": "x"}, "unknown position 'x'"),
        ({"backbone": "resnet20", "pretrained": True}, "no pretrained weights"),
        ({"backbone": "resnet20", "num_classes": -1}, "num_classes must be a whole number of at least 0, got -1"),
        ({"backbone": "resnet20", "num_classes": 2.5}, "num_classes must be a whole number of at least 0, got 2.5"),
        ({"backbone": "resnet20", "num_classes": "10"}, "at least 0, got '10'"),
        ({"backbone": "resnet18", "in_chans": 0}, "in_chans must be a whole number of at least 1, got 0"),
        ({"backbone": "resnet20", "in_chans": 1.5}, "in_chans must be a whole number of at least 1, got 1.5"),
        ({"backbone": "resnet20", "image_size": "32"}, "image_size must be a whole number of at least 1, got '32'"),
        ({"backbone": "resnet20", "image_size": 32.5}, "at least 1, got 32.5"),
    ],
)
def test_wrong_names_are_named(settings, message):
    with pytest.raises(ValueError) as caught:
        csham.create_model(**settings)
    assert message in str(caught.value)


def test_a_wrong_depth_is_named():
    with pytest.raises(ValueError, match=r"even.* got 21"):
        CifarResNet(21)


def test_a_setting_without_an_attention_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size: no such setting.*attention="):
        csham.create_model("resnet20", num_classes=3, kernel_size=5)


class Tuple(nn.Linear):
    def forward(self, x):
        return (super().forward(x.mean((2, 3))),)


@pytest.mark.parametrize(
    ("name", "side", "advice"),
    [
        ("torchvision/vgg11", 16, "It runs at 32 pixels: image_size=32 (--image-size 32)."),
        ("inception_v3", 32, "It runs at 75 pixels"),
        ("torchvision/inception_v3", 32, "It runs at 75 pixels"),
        ("alexnet", 32, "It runs at 64 pixels"),
        ("vit_tiny_patch16_224", 32, "It runs at 224 pixels"),
        ("vit_tiny_patch16_224", 256, "It runs at 224 pixels"),
    ],
)
def test_a_size_that_does_not_work_and_one_that_does(name, side, advice):
    with (
        pytest.raises(UserError, match=f"{name} cannot classify images of {side} pixels") as caught,
        torch.device("meta"),
    ):
        csham.create_model(name, image_size=side, num_classes=3)
    assert advice in str(caught.value)


@pytest.mark.parametrize(("name", "least"), [("lenet5", 16), ("vgg11_bn", 32), ("densenet121", 8), ("googlenet", 2)])
def test_the_least_size_of_the_table_works_and_a_smaller_one_would_not(name, least):
    with torch.device("meta"):
        model = csham.create_model(name, image_size=least, num_classes=3)
        check_size(model, name, 3, 3, least)
        with pytest.raises(UserError, match=f"it needs {least}"):
            csham.create_model(name, image_size=least - 1)
        with pytest.raises(UserError, match=f"of {least - 1} pixels"):
            check_size(model, name, 3, 3, least - 1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def test_what_is_no_classifier():
    with pytest.raises(UserError, match=r"it is no classifier of 5 classes: it returns a tuple, not logits, \(B, 5\)"):
        check_size(Tuple(3, 5), "it", 5, 3, 32)


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Counting(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_size(model, "it", 4, 3, 32)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_published_weights_that_a_stem_for_small_images_does_not_get_are_named(monkeypatch):
    """Only the network of the table has another stem, and only for small images."""
    from csham.backbones import libraries
    from csham.backbones.weights import NewWeightsWarning

    monkeypatch.setattr(libraries, "timm_network", lambda name, *sizes, pretrained: timm.create_model(name))
    with pytest.warns(
        NewWeightsWarning, match="weights of resnet18 are for larger images: new weights in conv1"
    ) as seen:
        csham.create_model("resnet18", pretrained=True, image_size=32, num_classes=1000)
    assert seen[0].message.modules == ("conv1",)
    for name, size in (("resnet18", 96), ("timm/resnet18", 32)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            csham.create_model(name, pretrained=True, image_size=size, num_classes=1000)
