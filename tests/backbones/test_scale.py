"""Other widths and depths: counts against formulas, the same network at factor 1, and what is refused."""

import pytest
import torch

from csham.backbones import BACKBONES, create_model
from csham.backbones.lookup import check_backbone, find_backbone
from csham.backbones.scale import Scale, split_scale
from csham.errors import UserError


def count(backbone, **settings):
    model = create_model(backbone, num_classes=10, image_size=32, **settings)
    return sum(p.numel() for p in model.parameters())


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def test_a_name_is_taken_apart():
    assert split_scale("resnet20") == ("resnet20", None)
    assert split_scale("resnet20@width=1.25") == ("resnet20", Scale(1.25, None))
    assert split_scale("resnet20@width=1.5,depth=26") == ("resnet20", Scale(1.5, 26))
    assert str(Scale(1.25, 26)) == "width=1.25,depth=26"


def test_the_networks_own_size_is_the_network():
    for backbone in ("resnet20", "wrn16_8", "lenet5"):
        torch.manual_seed(0)
        ours = create_model(f"{backbone}@width=1", num_classes=4, image_size=32).state_dict()
        torch.manual_seed(0)
        theirs = create_model(backbone, num_classes=4, image_size=32).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert count("resnet14@depth=20") == count("resnet20")


def test_a_cifar_resnet_widens_every_stage():
    model = create_model("resnet20@width=1.25", num_classes=10, image_size=32)
    assert [m.out_channels for m in convolutions(model)][::6] == [20, 20, 40, 80]
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(20, [3, 3, 3]), (22, [3, 3, 4]), (24, [3, 4, 4]), (26, [4, 4, 4]), (28, [4, 4, 5])]
)
def test_a_cifar_resnet_grows_block_by_block(depth, blocks):
    model = create_model(f"resnet20@depth={depth}", num_classes=10, image_size=32)
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3)] == blocks
    projections = 2
    assert len(convolutions(model)) + 1 == depth + projections


def test_a_wide_resnet_takes_a_factor_on_its_own_width():
    model = create_model("wrn16_8@width=0.125", num_classes=10, image_size=32)
    assert {m.out_channels for m in convolutions(model)} == {16, 32, 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    ["resnet18@width=0.5", "resnext50_32x4d@width=0.3", "resnext50_grouped@width=0.3", "densenet121@width=0.5",
     "mobilenetv2_100@width=0.5", "vgg11_bn@width=0.2", "resnet18@depth=16", "densenet121@depth=101"],
)  # fmt: skip
def test_timms_networks_shrink_and_run(backbone):
    model = create_model(backbone, num_classes=100, image_size=32)
    assert sum(p.numel() for p in model.parameters()) < BACKBONES[backbone.partition("@")[0]].params
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 100)


@pytest.mark.slow
def test_a_blocks_channels_are_the_factor_of_its_own():
    model = create_model("resnet18@width=1.25", num_classes=10, image_size=32)
    assert [stage[0].conv2.out_channels for stage in (model.layer1, model.layer4)] == [80, 640]


@pytest.mark.slow
def test_layers_go_where_resnet_101_has_them():
    model = create_model("resnet50@depth=101", num_classes=10, image_size=32)
    assert sum(p.numel() for p in model.parameters()) == count("resnet101")


@pytest.mark.slow
def test_a_depth_between_two_blocks_says_which_would_do():
    with pytest.raises(UserError, match=r"resnet50@depth=52: it has 50 layers.* 50 or 53 would do"):
        create_model("resnet50@depth=52", num_classes=10, image_size=32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20@wide=2", "Did you mean 'width'"),
        ("resnet20@width", "resnet20@width=1.25"),
        ("resnet20@width=1,width=2", "once"),
        ("resnet20@width=x", "factor from"),
        ("resnet20@width=0", "factor from"),
        ("resnet20@width=nan", "factor from"),
        ("resnet20@depth=2.5", "number of weight layers"),
        ("resnet20@depth=-2", "number of weight layers"),
        ("googlenet@width=2", "These have: resnet, wrn, densenet, mobilenetv2, vgg, lenet5"),
        ("lenet5@depth=9", "These have: resnet, wrn, densenet and"),
        ("vgg16_bn@depth=18", "no depth"),
        ("torchvision/resnet18@width=2", "no width"),
        ("resnetv2_50@width=2", "no width"),
        ("resnett20@width=2", "Did you mean"),
    ],
)
def test_what_cannot_be_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        find_backbone(name)


def test_published_weights_are_of_the_published_size():
    with pytest.raises(UserError, match="no pretrained weights"):
        check_backbone("resnet18@width=1.25", pretrained=True)


def test_an_odd_depth_is_refused_when_it_is_built():
    with pytest.raises(UserError, match=r"even.* got 21"):
        create_model("resnet20@depth=21", num_classes=10, image_size=32)
