"""Names of the channel step's weights: those of today, and those that older files have."""

import copy

import pytest
import timm
import torch
from torch import nn

import csham
from csham.layers import ATTENTIONS


def formerly(weights):
    return {name.replace("join.", "fuse."): value for name, value in weights.items()}


@pytest.mark.parametrize("build", [csham.ChannelAttention, csham.CSHAM, lambda c: nn.Sequential(csham.CSHAM(c))])
@pytest.mark.parametrize("assign", [False, True])
def test_former_names_load_strictly(build, assign):
    layer, other = build(8), build(8)
    weights = formerly(layer.state_dict())
    assert any(name.endswith("fuse.weight") for name in weights)
    other.load_state_dict(weights, strict=True, assign=assign)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fuse\.weight"):
        other.load_state_dict({**layer.state_dict(), **weights}, strict=True)


def test_a_layer_that_was_pickled_whole_under_the_former_name_loads():
    layer = csham.ChannelAttention(8)
    state = copy.copy(vars(layer))
    state["_modules"] = {"fuse" if name == "join" else name: m for name, m in layer._modules.items()}
    other = csham.ChannelAttention.__new__(csham.ChannelAttention)
    other.__setstate__(state)
    x = torch.randn(2, 8, 5, 5)
    assert list(other._modules) == list(layer._modules)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("name", ATTENTIONS)
def test_timm_reparameterizes_networks_that_hold_a_layer(name):
    """It takes attributes of certain names, such as ``fuse``, for methods that fold a module."""
    net = nn.Sequential(nn.Conv2d(3, 64, 3), csham.create_attention(name, 64)).eval()
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(timm.utils.reparameterize_model(net)(x), net(x))
