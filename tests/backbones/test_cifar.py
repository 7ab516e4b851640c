"""ResNets for 32-pixel images: what the papers print of them, and what timm computes."""

from functools import partial

import pytest
import torch
from torch import nn

from csham.backbones import WideResNet


@pytest.mark.parametrize(("depth", "width", "published"), [(16, 8, 11.0), (28, 10, 36.5), (40, 4, 8.9), (40, 10, 55.8)])
def test_the_sizes_of_the_papers_tables(depth, width, published, count):
    with torch.device("meta"):
        model = WideResNet(depth, width, num_classes=10)
    assert count(model) / 1e6 == pytest.approx(published, abs=0.1)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth


def test_the_block_is_timms():
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import DownsampleConv, PreActBasic

    model = WideResNet(16, 2)
    for into, block in ((32, model.layer2[0]), (64, model.layer2[1])):
        settings = {"conv_layer": create_conv2d, "norm_layer": partial(BatchNormAct2d, act_layer=nn.ReLU)}
        settings["proj_layer"] = DownsampleConv
        other = PreActBasic(into, 64, stride=block.conv1.stride[0], **settings)
        names = {"bn1": "norm1", "bn2": "norm2", "downsample": "downsample.conv"}
        weights = block.state_dict().items()
        other.load_state_dict({names.get(n, n) + "." + rest: v for (n, _, rest), v in _split(weights)})
        x = torch.randn(2, into, 8, 8)
        torch.testing.assert_close(block(x.clone()), other(x.clone()), rtol=0, atol=0)


def _split(weights):
    return [(key.partition("."), value) for key, value in weights]


def test_shapes_and_gradients():
    model = WideResNet(10, 1, num_classes=5, in_chans=1)
    assert model.forward_features(torch.randn(2, 1, 32, 32)).shape == (2, 64, 8, 8)
    model(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_wrong_depth_is_named():
    with pytest.raises(ValueError, match=r"even.* got 21"):
        WideResNet(21, 10)
