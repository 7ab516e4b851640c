"""Layers in networks that torch.fx traces and that torch.jit.script is given."""

import copy

import pytest
import timm
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

import csham
from csham.layers import ATTENTIONS
from csham.layers.attention import Gate


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
        self.attention = layer
        self.bn = nn.BatchNorm2d(64)

    def forward(self, x):
        return self.bn(self.attention(self.conv(x)))


class Own(Gate):
    """An attention of somebody's own, with a forward that looks at its input."""

    def weights(self, x):
        return x.mean((2, 3)).sigmoid()

    def forward(self, x):
        return super().forward(x) if x.shape[1] == self.channels else x


LAYERS = {**{name: lambda name=name: csham.create_attention(name, 64) for name in ATTENTIONS}, "own": lambda: Own(64)}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_one_node(build, training):
    torch.manual_seed(1)
    net = Net(build())
    x = torch.randn(2, 3, 12, 12)
    extractor = create_feature_extractor(net, ["attention", "bn"])
    net.train(training), extractor.train(training)
    expected = copy.deepcopy(net)(x)
    assert not torch.equal(expected, copy.deepcopy(net).bn(net.conv(x)))
    assert torch.equal(extractor(x)["bn"], expected)
    targets = [node.target for node in fx.symbolic_trace(net).graph.nodes if node.op == "call_module"]
    assert targets == ["conv", "attention", "bn"]


class Named(csham.CSHAM):
    """A forward that calls its map otherwise."""

    def forward(self, features):
        return super().forward(features)


class ByName(Net):
    def forward(self, x):
        return self.bn(self.attention(features=self.conv(x)))


def test_a_map_may_be_given_by_the_name_that_a_forward_calls_it():
    torch.manual_seed(1)
    net = ByName(Named(64)).eval()
    x = torch.randn(2, 3, 12, 12)
    traced = fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["conv", "attention", "bn"]
    assert torch.equal(traced(x), net(x))


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_a_layer_that_is_traced_or_scripted_alone_says_what_to_do(build):
    layer = build()
    with pytest.raises(ValueError, match=rf"torch\.fx takes {type(layer).__name__} as a whole: trace a network"):
        fx.symbolic_trace(layer)
    with pytest.raises(ValueError, match=rf"torch\.jit\.script cannot read {type(layer).__name__}\. Use torch\.export"):
        torch.jit.script(Net(layer))


def test_timms_features_by_fx():
    torch.manual_seed(1)
    settings = {"block_args": {"attn_layer": csham.CSHAM}, "zero_init_last": False, "out_indices": (1, 2, 3, 4)}
    traced = timm.create_model("resnet10t", features_only=True, feature_cls="fx", **settings).eval()
    hooked = timm.create_model("resnet10t", features_only=True, **settings).eval()
    weights = {name.removeprefix("graph_module."): value for name, value in traced.state_dict().items()}
    hooked.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 64)
    for got, expected in zip(traced(x), hooked(x), strict=True):
        torch.testing.assert_close(got, expected)
