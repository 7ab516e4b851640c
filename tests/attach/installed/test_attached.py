"""What each strategy computes at its points, against the formulas of the strategies' table."""

import copy

import pytest
import torch
from torch import nn

import csham
from csham.attach.names import STRATEGIES, check_strategy
from csham.backbones import CifarResNet
from csham.layers.names import ATTENTIONS

TWO_PART = [entry.name for entry in ATTENTIONS.values() if entry.two_part]


def scaled(x, weights):
    return x * (weights[:, :, None, None] if weights.dim() == 2 else weights)


def two_blocks(attention, strategy, **choice):
    """A chain of two points of one stage, random maps before each, and the parts of the attention at both."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)).double()
    csham.attach(model, attention, strategy=strategy, points=["0", "1"], **choice)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def parts(layer):
    return layer.channel, layer.spatial


def formula(strategy, model, x):
    """The strategies' table of csham.md, section 3, written out for two points of one stage."""
    convs = [lambda x, m=m: nn.functional.conv2d(x, m.weight, m.bias, padding=1) for m in model]
    one, two = (m.attached.attention if hasattr(m, "attached") else None for m in model)
    if strategy == "sequential":
        return two(convs[1](one(convs[0](x))))
    if strategy == "entry":
        return convs[1](one(convs[0](x)))
    if strategy in ("channel", "spatial"):
        for conv, part in zip(convs, (one, two), strict=True):
            x = conv(x)
            x = scaled(x, part.weights(x))
        return x
    if strategy in ("alternate", "transfer"):
        x = convs[0](x)
        w = one.weights(x)
        x = convs[1](scaled(x, w))
        if strategy == "transfer":
            x = scaled(x, w)
        return scaled(x, two.weights(x))
    for conv, (channel, spatial) in zip(convs, (parts(one), parts(two)), strict=True):
        x = conv(x)
        if strategy == "reversed":
            x = scaled(x, spatial.weights(x))
            x = scaled(x, channel.weights(x))
        elif strategy == "parallel":
            x = scaled(scaled(x, spatial.weights(x)), channel.weights(x))
        else:
            w = channel.weights(x)
            x = scaled(x, w)
            x = scaled(scaled(x, spatial.weights(x)), w)
    return x


@pytest.mark.parametrize("attention", TWO_PART)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_computes_its_formula(attention, strategy):
    model = two_blocks(attention, strategy)
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(model(x), formula(strategy, model, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attention", ["csham_linear"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_each_strategy_are_right(attention, strategy):
    model = two_blocks(attention, strategy)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


@pytest.mark.parametrize("attention", TWO_PART)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gated_each_strategy_starts_as_the_identity(attention, strategy):
    model = two_blocks(attention, strategy)
    gated = two_blocks(attention, strategy, gated=True)
    for module in gated:
        if hasattr(module, "attached"):
            module.attached.gate.data.fill_(1)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = nn.Sequential(*(copy.deepcopy(m) for m in gated))
    assert torch.equal(gated(x), csham.detach(plain)(x))
    for module in gated:
        if hasattr(module, "attached"):
            module.attached.gate.data.fill_(0)
    gated.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(gated(x), model(x))


@pytest.mark.parametrize("period", [2, 3, 4, 7])
def test_a_period_of_transfer_lends_to_all_its_spatial_points(period):
    model = CifarResNet(44, num_classes=3).eval()  # 7 blocks a stage
    points = csham.attach(model, "csham_linear", strategy="transfer", period=period, stages=[0, 1])
    for stage in (0, 1):
        run = [p for p in points if p.stage == stage]
        assert [p.part for p in run] == ["channel" if i % period == 0 else "spatial" for i in range(7)]
        for i, point in enumerate(run):
            assert point.weights_from == (run[i - i % period].name if i % period else None)
    lent = {}
    for name, module in model.named_modules():
        if name.endswith("bn2.attached"):
            module.register_forward_hook(lambda m, args, y, n=name: lent.update({n: (args[0], y.clone())}))
    model(torch.randn(2, 3, 16, 16))
    for point in points:
        x, y = lent[f"{point.name}.attached"]
        layer = model.get_submodule(point.name).attached.attention
        if point.weights_from is None:
            torch.testing.assert_close(y, scaled(x, layer.weights(x)))
        else:
            lender = model.get_submodule(point.weights_from).attached.attention
            borrowed = scaled(x, lender.weights(lent[f"{point.weights_from}.attached"][0]))
            torch.testing.assert_close(y, scaled(borrowed, layer.weights(borrowed)))


class InPlace(nn.Module):
    """An attention that writes into the map that it is given."""

    def __init__(self, channels):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-2, 2, channels)[:, None, None])

    def forward(self, x):
        x *= self.logits.sigmoid()
        return x


class OutOfPlace(InPlace):
    def forward(self, x):
        return x * self.logits.sigmoid()


class Reads(nn.Module):
    """A block whose branch ends with an identity, and whose shortcut is what that is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.end = nn.Conv2d(8, 8, 3, padding=1), nn.Identity()

    def forward(self, x):
        x = self.conv(x).relu()
        return x + self.end(x)


def two_that_read():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 1), Reads(), Reads(), nn.Flatten())


@pytest.mark.parametrize("fuse", [True, False])
def test_an_attention_that_writes_into_its_map_starts_as_the_identity_behind_a_gate(fuse):
    model = CifarResNet(8, num_classes=3).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    csham.attach(model, InPlace, gated=True, fuse=fuse)
    assert torch.equal(model(x), expected)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_an_attention_that_writes_into_its_map_writes_into_nobody_elses():
    """A shortcut reads that map, and the activation that made it needs it for its gradient."""
    models = [two_that_read() for _ in range(2)]
    for model, attention in zip(models, (InPlace, OutOfPlace), strict=True):
        csham.attach(model, attention, points="*.end")
    x = torch.randn(2, 3, 8, 8)
    got, expected = (model(x) for model in models)
    assert torch.equal(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_only_an_attention_that_writes_into_its_map_gets_a_copy():
    for attention, copies in ((InPlace, True), (OutOfPlace, False), ("csham", False), ("cbam", False)):
        csham.attach(model := two_that_read(), attention, points="*.end")
        assert [block.end.attached.copies_map for block in model[1:3]] == [copies] * 2


def test_parameters_of_each_strategy():
    """Half the points, or one a stage, pay for what the others do not."""

    def params(strategy, **more):
        points = csham.attach(CifarResNet(20), strategy=strategy, dry_run=True, **more)
        return sum(point.params for point in points)

    whole = {16: 15 + 102 + 9 * 16, 32: 15 + 102 + 9 * 32, 64: 15 + 102 + 9 * 64}
    for strategy in ("sequential", "reversed", "parallel", "reapply"):
        assert params(strategy) == 3 * sum(whole.values())
    assert params("entry") == sum(whole.values())
    assert params("channel") == 9 * 15
    assert params("spatial") == 3 * sum(whole.values()) - 9 * 15
    assert params("alternate") == params("transfer") == 6 * 15 + sum(whole.values()) - 3 * 15
    assert params("transfer", period=3) == 3 * 15 + 2 * (sum(whole.values()) - 3 * 15)


@pytest.mark.parametrize(
    ("strategy", "period", "message"),
    [
        ("transfer", 1, "period must be a whole number of at least 2 points, got 1"),
        ("transfer", 2.5, "got 2.5"),
        ("transfer", True, "got True"),
        ("alternate", 3, "period is a setting of strategy 'transfer', not of 'alternate'"),
    ],
)
def test_a_period_that_means_nothing_is_refused(strategy, period, message):
    with pytest.raises(ValueError) as caught:
        check_strategy("csham", strategy, period)
    assert message in str(caught.value)


def test_where_a_checkpoint_finds_attention():
    """In a module of the network's own; of one that would run a new child, in the last layer that it has."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())), nn.ReLU())
    before = set(model.state_dict())
    csham.attach(model, "simam", points=["0", "0.0"], gated=True)
    assert set(model.state_dict()) - before == {"0.1.1.attached.gate", "0.0.attached.gate"}
    csham.attach(other := nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)), "eca", points=["1"])
    assert "1.attached.attention.conv.weight" in other.state_dict()


class Activates(nn.Module):
    """A block that shares its activation with all others of its class, of other networks too."""

    def __init__(self, act=nn.ReLU()):  # noqa: B008  as some write it
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), act)

    def forward(self, x):
        return x + self.body(x)


def test_a_layer_that_blocks_share_holds_no_attention():
    model, other = (nn.Sequential(nn.Conv2d(3, 8, 1), Activates(), Activates()) for _ in range(2))
    before = set(model.state_dict())
    points = csham.attach(model, "eca")
    assert [point.name for point in points] == ["1.body", "2.body"]
    new = set(model.state_dict()) - before
    assert new == {f"{block}.body.1.attached.attention.conv.weight" for block in (1, 2)}
    assert not any("attached" in name for name in other.state_dict())
    csham.attach(other, "eca")


def test_two_points_in_one_layer_keep_apart():
    """Where all that a container has is shared, and where a container's last layer is a point too."""
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(act), nn.Sequential(act), nn.Sequential(nn.Conv2d(8, 8, 1)))
    before = set(model.state_dict())
    csham.attach(model, "simam", points=["1", "2", "3.0", "3"], gated=True)
    assert len({id(module) for module in model.modules() if type(module).__name__ == "Attached"}) == 4
    csham.detach(model)
    assert set(model.state_dict()) == before


def test_an_empty_container_has_no_place_for_attention():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential())
    with pytest.raises(ValueError, match=r"attach: 1 is empty, .* Choose modules"):
        csham.attach(model, "eca", points="1")
