"""A network that was run once is what it was before."""

import copy
import logging
import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque

import numpy.random
import pytest
import torch
from torch import nn

from csham.probing import copies_shared, evaluating, same_randomness, unchanged


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


class Meter(list):
    """A list that tells of everything that is done to it, and has attributes."""

    def clear(self):
        raise AssertionError("nobody asked for this")

    extend = append = clear


class Record:
    def __init__(self):
        self.total, self.by_kind, self.me = 0, {"images": [1]}, self


class Hidden(nn.Module):
    """Remembers in containers of every kind, in what they hold, and in objects."""

    def __init__(self):
        super().__init__()
        self.recent, self.of = deque([1, 2], maxlen=2), defaultdict(list, a=[1])
        self.counts, self.order, self.kinds = Counter(a=1), OrderedDict(a=1, b=2), {1}
        self.nested = [{"a": [torch.zeros(2)]}, ({"b"},)]
        self.meter, self.record = Meter([1]), Record()
        self.meter.name = "loss"
        self.layers = [nn.Linear(1, 1)]  # no children of its own

    def forward(self, x):
        self.recent.append(x)
        self.of["a"].append(x), self.of["b"].append(x)
        self.counts.update("ab")
        self.order.move_to_end("a")
        self.kinds.add(2)
        self.nested[0]["a"][0].add_(1), self.nested[0]["a"].append(x), self.nested[1][0].clear()
        list.append(self.meter, x)
        self.meter.name = "error"
        self.record.total += 1
        self.record.more = x
        self.record.by_kind["images"].append(x)
        self.layers[0].weight.data.fill_(7)
        return x


def told(module):
    record = module.record
    names = ("recent", "of", "counts", "order", "kinds", "nested")
    objects = [list(module.meter), module.meter.name, record.total, record.by_kind, sorted(vars(record))]
    return repr([getattr(module, name) for name in names] + objects + [module.layers[0].weight])


def test_what_containers_and_objects_hold_is_put_back_and_they_stay_the_same_ones():
    module = Hidden()
    objects, before = dict(vars(module)), told(module)
    record, inner, lists = module.record, module.nested[0]["a"], module.of["a"]
    with unchanged(module):
        module(torch.ones(2))
        assert told(module) != before
    assert told(module) == before
    assert module.recent.maxlen == 2
    assert all(vars(module)[name] is value for name, value in objects.items())
    assert (module.record.me, module.nested[0]["a"], module.of["a"]) == (record, inner, lists)
    assert module.nested[0]["a"] is inner
    assert module.of["a"] is lists


def test_what_stands_for_something_outside_is_not_looked_into():
    module = nn.Identity()
    module.lock, module.log, module.later = threading.Lock(), logging.getLogger("csham.tests"), threading.Event()
    with unchanged(module):
        module.later.set()
    assert module.later.is_set()


DRAWS = {"torch": lambda: torch.rand(1).item(), "python": random.random, "numpy": numpy.random.rand}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_that_a_run_draws_are_drawn_again(draw):
    module = nn.Identity()
    module.register_forward_hook(lambda *_: draw())
    with unchanged(module), same_randomness() as drawn:
        assert not drawn()
        first = draw()
        assert drawn()
    assert draw() == first
    with pytest.raises(ZeroDivisionError), same_randomness():
        1 / (draw() * 0)
    assert draw() != first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_random_numbers_that_a_run_draws_on_a_gpu_are_drawn_again():
    torch.zeros(1, device="cuda")
    with same_randomness() as drawn:
        first = torch.rand(1, device="cuda")
        assert drawn()
    assert torch.equal(torch.rand(1, device="cuda"), first)


def test_what_is_put_back_several_times_is_copied_once():
    module, values = nn.Linear(2, 2), torch.tensor([3.0, 4.0])
    with copies_shared():
        for _ in range(2):
            before = module.bias.detach().clone()
            with unchanged(module):
                module.bias.data.add_(1)
            assert torch.equal(module.bias, before)
            module.bias.data = values  # other memory, which nobody has a copy of
    with unchanged(module):
        module.bias.data.add_(1)
    assert torch.equal(module.bias, torch.tensor([3.0, 4.0]))
