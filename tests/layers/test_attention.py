"""What csham makes of attentions from outside, which know of none of its classes."""

import pytest
import torch
from torch import nn

import csham
from csham.attach.names import STRATEGIES
from csham.backbones import CifarResNet
from csham.layers.attention import apply, apply_and_lend, parts_of
from csham.layers.cbam import CBAM, CBAMSpatial
from csham.layers.channel import ChannelAttention
from csham.layers.from_timm import SqueezeExcite
from csham.layers.names import ATTENTIONS, AttentionName
from csham.layers.recording import record_weights
from csham.layers.spatial import SpatialAttention


class Means(nn.Module):
    """Scales each channel; its method ``attend`` is its own, and no call of csham's."""

    def __init__(self, channels, device=None, dtype=None):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def attend(self, queries, keys, values):
        return queries * (keys * values).sigmoid()

    def forward(self, x):
        return self.attend(x, x.mean((2, 3), keepdim=True), self.slope[:, None, None])


class Rows(nn.Module):
    def weights(self, x):
        return x.mean((1, 3), keepdim=True).sigmoid().expand(-1, -1, -1, x.shape[3])

    def forward(self, x):
        return x * self.weights(x)


class Channels(Means):
    def weights(self, x):
        return (x.mean((2, 3)) * self.slope).sigmoid()

    def forward(self, x):
        return x * self.weights(x)[:, :, None, None]


class Both(nn.Module):
    def __init__(self, channels, device=None, dtype=None):
        super().__init__()
        self.channel, self.spatial = Channels(channels, device, dtype), Rows()

    def forward(self, x):
        return self.spatial(self.channel(x))


@pytest.fixture
def outside(monkeypatch):
    """Names of two attentions of this file, one of parts."""
    for kind in (Means, Both):
        name, maps = kind.__name__.lower(), ("channel", "spatial") if kind is Both else ()
        entry = AttentionName(name, "", "", f"{__name__}:{kind.__name__}", "C", 256, maps, two_part=kind is Both)
        monkeypatch.setitem(ATTENTIONS, name, entry)
        monkeypatch.setattr("csham.layers.create.resolve_name", lambda layer: globals()[layer.partition(":")[2]])


@pytest.mark.usefixtures("outside")
def test_an_attention_with_a_forward_alone_can_be_attached():
    model = CifarResNet(14, num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    points = csham.attach(model, "means")
    assert all(point.fused for point in points)
    block = model.layer1[0]
    features = model.act1(model.bn1(model.conv1(x)))
    branch = nn.functional.batch_norm(
        block.conv2(block.act1(block.bn1(block.conv1(features)))),
        block.bn2.running_mean,
        block.bn2.running_var,
        block.bn2.weight,
        block.bn2.bias,
    )
    torch.testing.assert_close(block(features), (Means(16)(branch) + features).relu())
    model.train()(x).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "slope" in name)


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_attention_of_two_parts_takes_every_strategy(strategy):
    model = CifarResNet(14, num_classes=3).eval()
    csham.attach(model, "both", strategy=strategy)
    with csham.attention_maps(model) as maps:
        assert model(torch.randn(2, 3, 32, 32)).isfinite().all()
    assert set().union(*maps.values()) <= {"channel", "spatial"}
    assert maps


def test_steps_that_compute_in_one_call_and_those_put_together_agree():
    x, shortcut, w = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5), torch.rand(2, 8)
    scaled = x * w[:, :, None, None]
    layer = Both(8)
    channel, spatial = parts_of(layer)
    y, weights = apply_and_lend(channel, x, shortcut)
    torch.testing.assert_close(weights, channel.weights(x))
    torch.testing.assert_close(y, (channel(x) + shortcut).relu())
    for part in (spatial, csham.SpatialAttention(8).eval()):
        expected = (part(scaled) + shortcut).relu()
        torch.testing.assert_close(apply(part, x, shortcut, channel_weights=w), expected)
    for whole in (layer, csham.CSHAM(8).eval()):
        expected = (whole.channel(whole.spatial(x)) + shortcut).relu()
        torch.testing.assert_close(apply(whole, x, shortcut, connection="reversed"), expected)


def test_parts_are_modules_with_weights():
    assert parts_of(csham.CSHAM(4)) is not None
    assert parts_of(csham.create_attention("bam", 16)) is not None
    assert parts_of(nn.ModuleDict({"channel": nn.ReLU(), "spatial": nn.ReLU()})) is None
    assert parts_of(Means(4)) is None


def residual(kind):
    """A subclass whose forward adds the map once more."""
    return type("Residual", (kind,), {"forward": lambda self, x: x + super(type(self), self).forward(x)})


@pytest.mark.parametrize("kind", [csham.CSHAM, ChannelAttention, SpatialAttention, CBAM, SqueezeExcite])
def test_a_forward_of_a_subclass_is_called_wherever_it_hangs(kind):
    x, shortcut, w = torch.randn(2, 8, 6, 5), torch.randn(2, 8, 6, 5), torch.rand(2, 8)
    theirs, ours = residual(kind)(8).eval(), kind(8).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(apply(theirs, x, shortcut), (x + ours(x) + shortcut).relu())
    scaled = x * w[:, :, None, None]
    torch.testing.assert_close(apply(theirs, x, channel_weights=w), scaled + ours(scaled))
    ours.forward = lambda x: 2 * x
    torch.testing.assert_close(apply(ours, x), 2 * x)
    inherits = type("Inherits", (kind,), {})(8)
    inherits.attend = lambda x, *args, **kwargs: x  # in the one call, which needs no other
    assert apply(inherits, x) is x


@pytest.mark.parametrize("kind", [ChannelAttention, SpatialAttention, CBAMSpatial])
def test_weights_of_a_subclass_are_used_whether_anybody_looks_or_not(kind):
    class Sharp(kind):
        def weights(self, x):
            return super().weights(x) ** 2

    x, shortcut, w = torch.randn(2, 9, 6, 5), torch.randn(2, 9, 6, 5), torch.rand(2, 9)
    layer = Sharp(9).eval()
    channel = kind is ChannelAttention
    steps = [
        layer,
        lambda x: apply(layer, x, shortcut),
        lambda x: apply_and_lend(layer, x)[0] if channel else apply(layer, x, channel_weights=w),
    ]
    unseen = [step(x) for step in steps]
    squares = layer.weights(x)
    torch.testing.assert_close(unseen[0], x * (squares[:, :, None, None] if channel else squares))
    stop = record_weights(layer, lambda kind, weights: None)
    for step, expected in zip(steps, unseen, strict=True):
        assert torch.equal(step(x), expected)
    stop()


# A hook on BAM's is not called: its statistics would be taken twice.
@pytest.mark.parametrize(("whole", "hooked"), [("csham", False), ("csham", True), ("cbam", True), ("bam", False)])
def test_a_forward_over_a_channel_part_is_what_a_lender_runs(whole, hooked):
    part = csham.create_attention(whole, 16).channel.eval()
    x, shortcut = torch.randn(2, 16, 6, 5), torch.randn(2, 16, 6, 5)
    expected, weights = part(x) / 2, part.weights(x)
    if hooked:
        part.register_forward_hook(lambda part, args, y: y / 2)
    else:
        kind = type(part)
        part.__class__ = type("Halved", (kind,), {"forward": lambda self, x: super(type(self), self).forward(x) / 2})
    told = []
    stop = record_weights(part, lambda kind, weights: told.append(weights))
    y, lent = apply_and_lend(part, x, shortcut)
    stop()
    torch.testing.assert_close(y, (expected + shortcut).relu())
    torch.testing.assert_close(lent, weights)
    assert len(told) == 1
    torch.testing.assert_close(apply_and_lend(part, x)[0], expected)


def test_a_lender_of_none_of_cshams_classes_computes_its_weights_once():
    layer, calls = Channels(8), []
    layer.weights = lambda x: calls.append(x) or Channels.weights(layer, x)
    x = torch.randn(2, 8, 6, 5)
    y, weights = apply_and_lend(layer, x)
    torch.testing.assert_close(y, x * weights[:, :, None, None])
    assert len(calls) == 1


def test_parts_of_a_subclass_are_called_in_their_place():
    x = torch.randn(2, 8, 6, 5)
    for whole in (csham.CSHAM(8).eval(), CBAM(8).eval()):
        alone = whole.channel(x)
        whole.channel.forward = lambda x, alone=alone: 2 * alone
        torch.testing.assert_close(whole(x), whole.spatial(2 * alone))
