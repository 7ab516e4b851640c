"""attention_maps: what was weighed at every point, while the network ran."""

import copy

import pytest
import torch

import csham
from csham.attach.names import STRATEGIES
from csham.backbones import CifarResNet
from csham.layers.names import ATTENTIONS


def network(attention="csham_linear", **choice):
    torch.manual_seed(2)
    model = CifarResNet(14, num_classes=3)
    return model, csham.attach(model, attention, **choice)


def watch(model, points):
    """Input and output of every attached module."""
    seen = {}
    for point in points:
        attached = model.get_submodule(point.name).attached
        attached.register_forward_hook(lambda m, args, y: seen.update({m.name: (args[0], y.clone())}))
    return seen


KINDS = {"channel": {"channel"}, "spatial": {"spatial"}}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_maps_of_each_strategy_are_what_was_multiplied(strategy):
    model, points = network(strategy=strategy)
    seen = watch(model, points)
    with csham.attention_maps(model) as maps:
        model(torch.randn(2, 3, 16, 16))
    assert list(maps) == [point.name for point in points]
    for point in points:
        kinds = KINDS.get(point.part, {"channel", "spatial"}) | ({"channel"} if point.weights_from else set())
        found = maps[point.name]
        assert set(found) == kinds
        x, y = seen[point.name]
        if "channel" in kinds:
            assert found["channel"].shape == (2, point.channels)
            times = 2 if point.part == "reapply" else 1
            x = x * found["channel"][:, :, None, None] ** times
        if "spatial" in kinds:
            assert found["spatial"].shape == (2, 1, *x.shape[2:])
            x = x * found["spatial"]
        torch.testing.assert_close(y, x)
        assert not any(value.requires_grad for value in found.values())
    if strategy == "transfer":
        assert torch.equal(maps["layer1.1.bn2"]["channel"], maps["layer1.0.bn2"]["channel"])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_shows_the_maps_its_table_promises(attention):
    model, points = network(attention)
    with csham.attention_maps(model.eval()) as maps, torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    for point in points:
        assert set(maps.get(point.name, {})) == set(ATTENTIONS[attention].maps)


@pytest.mark.usefixtures("reference")
def test_recording_changes_nothing_and_ends_with_the_block():
    model, points = network(strategy="transfer")
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, 16, 16)
    with csham.attention_maps(model) as maps:
        y = model(x)
        assert torch.equal(y, plain(x))
        y.sum().backward()
        first = {name: dict(found) for name, found in maps.items()}
        model(2 * x)
        assert not torch.equal(maps[points[0].name]["channel"], first[points[0].name]["channel"])
        kept = {name: dict(found) for name, found in maps.items()}
    model(3 * x)
    assert all(torch.equal(maps[n][k], kept[n][k]) for n in kept for k in kept[n])
    plain(2 * x), plain(3 * x)
    for (key, got), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(got, expected), key
    copy.deepcopy(model)(x)


@pytest.mark.slow
def test_a_compiled_network_is_looked_into_too():
    model, points = network()
    compiled = torch.compile(model.eval(), backend="aot_eager")
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        compiled(x)
        with csham.attention_maps(compiled) as maps:
            compiled(x)
    assert list(maps) == [point.name for point in points]


def test_two_recordings_at_once_both_see():
    model, points = network()
    with csham.attention_maps(model) as outer:
        with csham.attention_maps(model) as inner:
            model(torch.randn(1, 3, 16, 16))
        assert inner.keys() == outer.keys() == {point.name for point in points}


def test_branches_that_got_their_attention_one_by_one_keep_apart():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            (self.rgb, points), (self.depth, _) = network("se"), network("se")
            self.points = [point.name for point in points]

        def forward(self, x):
            return self.rgb(x) + self.depth(2 * x)

    model = Two().eval()
    x = torch.randn(2, 3, 16, 16)
    with csham.attention_maps(torch.nn.DataParallel(model)) as maps:
        model(x)
    assert maps.keys() == {f"{branch}.{point}" for branch in ("rgb", "depth") for point in model.points}
    with csham.attention_maps(model.rgb) as alone:
        model.rgb(x)
    assert list(alone) == model.points
    for point in model.points:
        assert torch.equal(maps[f"rgb.{point}"]["channel"], alone[point]["channel"])


def test_a_network_without_attention_is_named():
    model = CifarResNet(14)
    with pytest.raises(ValueError, match="CifarResNet has no attention attached"), csham.attention_maps(model):
        pass
