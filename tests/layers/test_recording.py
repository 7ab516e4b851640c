"""What is recorded is what was used: multiplied into the input it gives the output."""

import copy

import pytest
import torch
from torch import nn

import csham
from csham.errors import UserError
from csham.layers import record_weights
from csham.layers.names import ATTENTIONS

GATES = [name for name, entry in ATTENTIONS.items() if entry.maps]
SHAPES = {"channel": (2, 16), "spatial": (2, 1, 6, 5), "full": (2, 16, 6, 5)}


def recorded(layer, x):
    found = []
    stop = record_weights(layer, lambda kind, weights: found.append((kind, weights)))
    y = layer(x)
    stop()
    return y, found


def applied(x, found):
    for kind, weights in found:
        x = x * (weights[:, :, None, None] if kind == "channel" else weights)
    return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", GATES)
def test_maps_are_those_of_the_table_and_give_the_output(name, training):
    layer = csham.create_attention(name, 16).train(training)
    x = torch.randn(2, 16, 6, 5)
    y, found = recorded(layer, x)
    assert tuple(kind for kind, _ in found) == ATTENTIONS[name].maps
    assert all(weights.shape == SHAPES[kind] for kind, weights in found)
    expected = applied(x, found)
    if name == "shuffle":
        expected = nn.functional.channel_shuffle(expected, 2)
    # float32: factors may be multiplied in another order
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in GATES])
def test_attentions_that_add_note_nothing(name):
    assert recorded(csham.create_attention(name, 16), torch.randn(2, 16, 6, 5))[1] == []


@pytest.mark.parametrize("name", [name for name, entry in ATTENTIONS.items() if entry.two_part])
@pytest.mark.parametrize("part", ["channel", "spatial"])
def test_parts_alone(name, part):
    layer = csham.create_attention(name, 16).eval().get_submodule(part)
    x = torch.randn(2, 16, 6, 5)
    y, found = recorded(layer, x)
    assert [kind for kind, _ in found] == [part]
    assert found[0][1].shape == SHAPES[part]
    assert torch.equal(found[0][1], layer.weights(x))
    assert torch.equal(y, applied(x, found))


@pytest.mark.parametrize(
    ("name", "settings", "kind"),
    [
        ("coord", {"has_skip": True}, "full"),
        ("ge", {"extent": 2}, "full"),
        ("se", {"gate_layer": "hard_sigmoid"}, "channel"),
    ],
)
def test_settings_that_change_what_is_applied(name, settings, kind):
    x = torch.randn(2, 16, 6, 5)
    y, found = recorded(csham.create_attention(name, 16, **settings), x)
    assert [k for k, _ in found] == [kind]
    torch.testing.assert_close(y, applied(x, found), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["coord", "ela", "strip", "simam", "se"])
def test_the_kind_does_not_depend_on_the_map(name):
    _, found = recorded(csham.create_attention(name, 16), torch.randn(1, 16, 1, 1))
    assert tuple(kind for kind, _ in found) == ATTENTIONS[name].maps


@pytest.mark.parametrize("name", ["csham", "cbam", "se", "coord", "bam"])
def test_recordings_end_one_by_one_and_leave_nothing(name):
    layer = csham.create_attention(name, 16).eval()
    before = {key: set(vars(module)) for key, module in layer.named_modules()}
    x = torch.randn(2, 16, 6, 5)
    first, second = [], []
    stop_first = record_weights(layer, lambda kind, weights: first.append(kind))
    stop_second = record_weights(layer, lambda kind, weights: second.append(kind))
    layer(x)
    stop_first()
    stop_first()
    layer(x)
    stop_second()
    layer(x)
    assert len(second) == 2 * len(first) == 2 * len(ATTENTIONS[name].maps)
    assert {key: set(vars(module)) for key, module in layer.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())


@pytest.mark.parametrize("name", ["csham", "se", "bam"])
def test_weights_carry_gradients(name):
    x = torch.randn(2, 16, 6, 5, requires_grad=True)
    _, found = recorded(csham.create_attention(name, 16), x)
    for _, weights in found:
        assert torch.autograd.grad(weights.sum(), x, retain_graph=True)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["csham", "se", "simam"])
def test_a_copy_made_while_recording_uses_its_own_weights(name):
    layer = csham.create_attention(name, 16).eval()
    stop = record_weights(layer, lambda kind, weights: None)
    twin = copy.deepcopy(layer)
    stop()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    plain = csham.create_attention(name, 16).eval()
    plain.load_state_dict(twin.state_dict())
    x = torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(twin(x), plain(x))


def test_a_pass_that_failed_leaves_nothing_to_the_next():
    layer = csham.create_attention("coord", 16)
    found = []
    record_weights(layer, lambda kind, weights: found.append(weights.shape))
    with pytest.raises(UserError):
        layer(torch.randn(2, 3, 6, 5))
    layer(torch.randn(2, 16, 6, 5))
    assert found == [(2, 16, 6, 5)]


def test_what_has_no_weights_is_refused():
    with pytest.raises(UserError, match="Conv2d is no attention with weights to look at"):
        record_weights(nn.Conv2d(3, 3, 1), print)


class Scaled(nn.Module):
    """A method with more arguments, called by their names."""

    def weights(self, features, power=1.0):
        return features.mean((2, 3)).sigmoid() ** power

    def forward(self, x):
        return x * self.weights(features=x, power=2.0)[:, :, None, None]


def test_a_method_may_have_further_arguments_and_be_called_by_name():
    x = torch.randn(2, 16, 6, 5)
    y, found = recorded(Scaled(), x)
    assert [kind for kind, _ in found] == ["channel"]
    assert torch.equal(y, applied(x, found))


class Pair(nn.Module):
    """A method whose result multiplies nothing."""

    def weights(self, x):
        return x.mean((2, 3)).sigmoid(), x.mean().sigmoid()

    def forward(self, x):
        channels, all_of_it = self.weights(x)
        return x * channels[:, :, None, None] * all_of_it


class Scalar(nn.Module):
    def weights(self, x):
        return x.mean().sigmoid()

    def forward(self, x):
        return x * self.weights(x)


class Filters(nn.Module):
    """Its ``weights`` are a module, or a list of parameters."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        return x * next(self.parameters()).flatten()[:1].sigmoid()


LISTED = nn.ParameterList([torch.ones(1)])


@pytest.mark.parametrize("layer", [Pair(), Scalar(), Filters(nn.Sequential(nn.Conv2d(16, 16, 1))), Filters(LISTED)])
def test_a_point_whose_weights_are_none_is_left_out(layer):
    network = csham.backbones.CifarResNet(14, num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    csham.attach(network, lambda channels: copy.deepcopy(layer))
    expected = network(x)
    with csham.attention_maps(network) as maps:
        assert torch.equal(network(x), expected)
    assert maps == {}
