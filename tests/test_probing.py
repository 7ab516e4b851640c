"""A network that was run once is what it was before."""

import copy

import pytest
import torch
from torch import nn

from csham.probing import evaluating, unchanged


class Merged(nn.Conv2d):
    """Adds what it learns to its weight for evaluation, and takes it off again for training, as loralib's layers do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


class Frozen(nn.BatchNorm2d):
    """Never trains, once it was told to."""

    def train(self, mode=True):
        return super().train(False)


@pytest.fixture
def model():
    return nn.Sequential(Merged(3, 4, 1), nn.Sequential(Merged(4, 4, 1), Frozen(4)), nn.Dropout())


def modes(model):
    return [(module.training, getattr(module, "merged", None)) for module in model.modules()]


def test_modules_that_act_on_their_mode_are_told_of_it_on_the_way_back(model):
    model[1].eval()
    model[1][1].training = True
    before = modes(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert model[0].merged
    assert modes(model) == before


def test_an_error_puts_the_modes_back_too(model):
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert modes(model) == before


class Remembers(nn.Module):
    """Changes in a forward pass in every way that a module can."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.scale = nn.Parameter(torch.tensor([1.0, float("nan")]))
        self.register_buffer("range", torch.empty(0))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("later", None)
        self.calls, self.seen, self.kinds, self.tensor = 0, [1], {}, torch.zeros(2)
        self.twin = self.tensor

    def forward(self, x):
        self.calls += 1
        self.seen.append(x)
        self.kinds["image"] = x
        self.more = x
        self.tensor.add_(1)
        self.weight.data = torch.zeros(2, 2)
        self.scale = nn.Parameter(self.scale.detach() + 1)
        self.range.resize_(4).fill_(2)
        self.mean = self.mean + 1
        self.later = x
        self.child = nn.ReLU()
        del self.twin
        return x


@pytest.mark.parametrize("ended_by", [None, KeyboardInterrupt])
def test_whatever_modules_remember_is_put_back(ended_by):
    module = Remembers()
    before = copy.deepcopy(module)
    objects = {**vars(module), **module._parameters, **module._buffers}
    memory, version = module.weight.data_ptr(), module.weight._version
    try:
        with unchanged(module):
            module(torch.ones(2))
            if ended_by is not None:
                raise ended_by
    except KeyboardInterrupt:
        pass
    assert {**vars(module), **module._parameters, **module._buffers}.keys() == objects.keys()
    assert all(value is objects[name] for name, value in {**vars(module), **module._parameters}.items())
    assert not list(module.children())
    assert (module.calls, module.seen, module.kinds) == (0, [1], {})
    for name in ("weight", "scale", "range", "mean", "tensor"):
        torch.testing.assert_close(getattr(module, name), getattr(before, name), rtol=0, atol=0, equal_nan=True)
    assert (module.weight.data_ptr(), module.weight._version) == (memory, version)


def test_memory_that_tensors_share_stays_shared():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight.data = network[0].weight.data.T
    with unchanged(network):
        network[0].weight.data.add_(1)
        network[0].weight.data = torch.zeros(2, 2)
    network[0].weight.data.fill_(3)
    assert (network[1].weight == 3).all()


def test_what_has_no_values_and_what_a_first_run_makes_are_left_alone():
    with unchanged(nn.Linear(2, 2, device="meta")):
        pass
    lazy = nn.Sequential(nn.LazyLinear(2))
    with unchanged(lazy), evaluating(lazy):
        lazy(torch.ones(1, 3))
    assert lazy(torch.ones(1, 3)).shape == (1, 2)
