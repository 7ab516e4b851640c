"""What attach sees of an attention when it runs it once: what is none is refused, with a gate as without one."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import stochastic_depth

import csham
from csham.backbones import CifarResNet
from csham.errors import UserError


class Convolved(nn.Module):
    """Base of attentions with a convolution of the map."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=1)


class WeightsOnly(Convolved):
    """As the channel attention in many a repository of CBAM, which leaves the scaling to the block."""

    def forward(self, x):
        return self.conv(x.mean((2, 3), keepdim=True)).sigmoid()


class Pair(Convolved):
    def forward(self, x):
        return x * self.conv(x).sigmoid(), 0


class Residual(Convolved):
    """Starts as the identity, as attentions with a scale of zero do (SAGAN, CCNet, timm's non-local block)."""

    def __init__(self, channels):
        super().__init__(channels)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.scale * self.conv(x)


class DropsInPlace(Convolved):
    """Writes into its map in training alone."""

    def forward(self, x):
        dropped = nn.functional.dropout2d(x, 0.5, self.training, inplace=True)
        return dropped * self.conv(dropped).sigmoid()


class MadeLate(nn.Module):
    """Makes its layer in the first pass; ``in_training``: only in one of training."""

    def __init__(self, channels, *, in_training=False):
        super().__init__()
        self.in_training, self.conv = in_training, None

    def forward(self, x):
        if self.conv is None and (self.training or not self.in_training):
            self.conv = nn.Conv2d(x.shape[1], x.shape[1], kernel_size=1)
        return x * (x if self.conv is None else self.conv(x)).sigmoid()


class Rows(Convolved):
    """Returns its map with the channels innermost."""

    def forward(self, x):
        return (x * self.conv(x).sigmoid()).contiguous(memory_format=torch.channels_last)


def attached(model):
    return [module for name, module in model.named_modules() if name.endswith(".attached")]


def refused(attention, **settings):
    model = CifarResNet(8, num_classes=3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        csham.attach(model, attention, **settings)
    assert not attached(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("gated", [False, True])
class TestWithAndWithoutAGate:
    @pytest.mark.parametrize(("attention", "made"), [(WeightsOnly, r"a map of (1, 16, 1, 1)"), (Pair, "a tuple")])
    def test_what_returns_no_map_of_its_inputs_shape_is_refused(self, gated, attention, made):
        assert f"{attention.__name__} at layer1.0.bn2 made {made} of one of" in refused(attention, gated=gated)

    @pytest.mark.parametrize("in_training", [False, True])
    def test_what_makes_its_layers_in_the_first_pass_is_refused(self, gated, in_training):
        said = refused(MadeLate, gated=gated, in_training=in_training)
        assert "MadeLate makes conv.bias in its first pass" in said


def test_behind_a_gate_what_starts_as_the_identity_would_never_learn():
    assert "Residual at layer1.0.bn2 starts as the identity" in refused(Residual, gated=True)
    csham.attach(model := CifarResNet(8, num_classes=3), Residual)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(layer.attention.scale.grad.abs() > 0 for layer in attached(model))


class DropsItsBranch(Convolved):
    """Is the identity in training wherever its branch is dropped."""

    def forward(self, x):
        return x + stochastic_depth(x * self.conv(x).sigmoid(), 1.0, "batch", self.training)


def test_what_drops_its_branch_in_training_does_not_start_as_the_identity():
    assert len(csham.attach(CifarResNet(8, num_classes=3), DropsItsBranch, gated=True)) == 3


def test_what_writes_into_its_map_in_training_alone_starts_as_the_identity_behind_a_gate():
    torch.manual_seed(1)
    plain = CifarResNet(8, num_classes=3)
    csham.attach(model := copy.deepcopy(plain), DropsInPlace, gated=True)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(model(x), plain(x))
    model(x).square().sum().backward()
    assert all(layer.gate.grad.abs() > 0 for layer in attached(model))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_behind_a_gate_a_map_keeps_its_layout(memory_format):
    csham.attach(model := CifarResNet(8, num_classes=3).to(memory_format=memory_format), Rows, gated=True)
    seen = []
    for layer in attached(model):
        layer.register_forward_hook(lambda layer, args, y: seen.append((args[0].stride(), y.stride())))
    model(torch.randn(2, 3, 16, 16).to(memory_format=memory_format))
    assert len(seen) == 3
    assert all(given == made for given, made in seen)
