import pytest
import torch
from torch import nn

import csham
from csham.backbones.sizes import check_size
from csham.errors import UserError


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


def test_what_is_no_classifier():
    with pytest.raises(UserError, match=r"does not return one row of logits.*none of the usual sizes"):
        check_size(Tuple(3, 5), "it", 5, 3, 32)


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_size(model, "it", 4, 3, 32)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
