"""attach on whole families of networks: the points, and that nothing of the network is lost."""

import copy
import os
import warnings
from contextlib import nullcontext

import pytest
import torch
from networks import NETWORKS
from torch import nn

import csham

# `make test-networks` asks all of them everything; compiling and exporting 57 networks takes a quarter of an hour.
ALL = bool(os.environ.get("CSHAM_ALL_NETWORKS"))
TRACED = {"timm-resnet10t"}


@pytest.fixture(params=NETWORKS, ids=lambda network: network.id)
def network(request):
    with warnings.catch_warnings():
        # EdgeNeXt: three of its blocks have no module of their own to attach to, as its entry says.
        warnings.filterwarnings("ignore", "attach: 3 of 12 points of EdgeNeXt")
        yield request.param


def strategy_for(model):
    """Transfer where a stage has two points, since it is the one that ties points together."""
    stages = [point.stage for point in csham.attach(model, dry_run=True)]
    return "transfer" if len(set(stages)) < len(stages) else "sequential"


def wake(model):
    """Undo what networks start with to be the identity: gains of zero would keep attention from the loss."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.abs().max() < 1e-3:
            nn.init.ones_(parameter)
    return model


def test_points_are_the_architectures(network):
    with torch.device("meta") if network.heavy else nullcontext():
        points = csham.attach(network.build(), dry_run=True)
    assert len(points) == network.points, network.why


@pytest.mark.slow
def test_nothing_of_the_network_is_lost_and_all_of_the_attention_trains(network):
    if (network.heavy or NETWORKS.index(network) % 3) and not ALL:
        pytest.skip("every third of those that take a second is trained; CSHAM_ALL_NETWORKS=1 trains them all")
    model = wake(network.build()).eval()
    keys = list(model.state_dict())
    plain = copy.deepcopy(model)
    x = torch.randn(2, 3, network.side, network.side)
    with torch.no_grad():
        expected = plain(x)
    strategy = strategy_for(model)

    csham.attach(model, strategy=strategy, gated=True)
    assert [key for key in model.state_dict() if ".attached" not in key] == keys
    with torch.no_grad():
        assert torch.equal(model(x), expected)

    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(1)
        assert torch.equal(model(x), expected)

    csham.detach(model)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]

    csham.attach(model, strategy=strategy)
    before = {name: p.clone() for name, p in model.named_parameters() if ".attached" in name}
    model.train()(x).logsumexp(1).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = dict(model.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not still


@pytest.mark.slow
def test_compiles_and_exports_where_the_plain_network_does(network):
    if not ALL and network.id not in TRACED:
        pytest.skip("a few are traced; CSHAM_ALL_NETWORKS=1 traces them all")
    model = network.build().eval()
    x = torch.randn(2, 3, network.side, network.side)
    plain = [refusal(how, model, x) for how in (compiled, exported)]
    csham.attach(model, strategy=strategy_for(model))
    for how, refused in zip((compiled, exported), plain, strict=True):
        torch.compiler.reset()
        assert (how.__name__, refusal(how, model, x)) == (how.__name__, None) or refused


def compiled(model, x):
    return torch.compile(model, fullgraph=True, backend="eager")(x)


def exported(model, x):
    return torch.export.export(model, (x,)).module()(x)


def refusal(how, model, x):
    """None if the network comes out of it computing the same, else what was said."""
    try:
        with torch.no_grad():
            torch.testing.assert_close(how(model, x), model(x), rtol=1e-4, atol=1e-4)
    except Exception as err:
        return str(err)
    return None
