"""csham.cost: what comes out, in which order things are timed, and what becomes of failures."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import csham
from csham.backbones import CifarResNet
from csham.cost import Comparison, Cost, Settings, Spread
from csham.cost.task import Task
from csham.errors import UserError

SMALL = {"image_size": 16, "batch_sizes": [2], "rounds": 2}


class Notes:
    """Remembers what it was told."""

    def __init__(self):
        self.notes, self.totals, self.steps = [], [], []

    def note(self, text):
        self.notes.append(text)

    def start(self, done, total):
        self.totals.append(total)

    def step(self, where, done, loss, images_per_s):
        self.steps.append((where, done))


class Broken(nn.Module):
    """Runs, except where it should not."""

    def __init__(self, when):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.when = when

    def forward(self, x):
        if self.when(self, x):
            raise RuntimeError("maps too small\nmore lines")
        return self.conv(x).mean((2, 3))


def plain_and_attention():
    return {
        "plain": lambda: CifarResNet(8),
        "csham": lambda: csham.create_model("resnet14", attention="csham", num_classes=10, image_size=16),
    }


def test_one_network():
    network = CifarResNet(8)
    found = csham.cost(network, **SMALL)
    assert isinstance(found, Cost)
    assert found.params == sum(p.numel() for p in network.parameters())
    assert found.flops > found.flops_matmul == 2 * found.macs
    assert found.input_size == (3, 16, 16)
    for spread in (found.latency_ms, found.images_per_s, found.train_step_ms):
        assert 0 < spread.lower <= spread.median <= spread.upper
    assert found.train_peak_mib > found.peak_mib > found.params * 4 / 2**20
    assert (found.params_extra, found.rounds, found.failed) == (0, 2, "")
    assert set(found.ratios.values()) == {1.0}


def test_the_package_and_the_function_are_one():
    import csham.cost as room

    assert csham.cost is room
    assert callable(room)
    assert room.cost.__name__ == "cost"
    with pytest.raises(UserError, match="one of the two"):
        room(CifarResNet(8))


def test_side_by_side():
    plain, attention = csham.cost(plain_and_attention(), **SMALL)
    assert (plain.name, attention.name) == ("plain", "csham")
    assert attention.params_extra == attention.params - plain.params > 0
    assert attention.ratios["params"] == attention.params / plain.params
    assert attention.ratios["flops"] == attention.flops / plain.flops
    assert attention.ratios["train_peak"] == attention.train_peak_mib / plain.train_peak_mib
    assert set(attention.ratios) == {
        "params", "flops", "flops_matmul", "latency", "inference", "train_step", "peak", "train_peak",
    }  # fmt: skip
    assert plain.to_row().keys() == attention.to_row().keys()


def test_batch_sizes_and_precisions_give_rows_in_order():
    found = csham.cost(
        {"a": CifarResNet(8)}, image_size=8, batch_sizes=[1, 3], precisions=["fp32", "bf16"], rounds=1, training=False
    )
    assert [(c.precision, c.batch_size) for c in found] == [("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 3)]
    assert all(c.train_step_ms is None and c.train_peak_mib is None for c in found)
    one = found[0]
    assert one.images_per_s.median == pytest.approx(1000 / one.latency_ms.median)  # timed once, not twice


def test_a_ratio_is_the_median_of_the_rounds_ratios(monkeypatch):
    """The second round is slower for all: medians of times would differ, ratios within rounds do not."""
    times = {"plain": [1.0, 4.0, 1.5], "csham": [2.0, 8.0, 3.0]}
    networks = {name: build() for name, build in plain_and_attention().items()}

    def sample(task):
        name = next(n for n, network in networks.items() if network is task._network)
        task.samples.append(times[name][len(task.samples)])

    monkeypatch.setattr(Task, "sample", sample)
    _, attention = csham.cost(networks, **{**SMALL, "rounds": 3})
    assert attention.ratios["latency"] == attention.ratios["train_step"] == 2.0
    assert attention.train_step_ms.median == 3000.0
    assert attention.images_per_s.median == pytest.approx(2 / 3)


def test_rounds_are_interleaved():
    told = Notes()
    csham.cost({name: CifarResNet(8) for name in "abcd"}, **{**SMALL, "rounds": 3}, progress=told)
    timed = [where.split(", ") for where, _ in told.steps if where.startswith("round")]
    orders = [[name for label, name in timed if label == f"round {n}/3"] for n in (1, 2, 3)]
    assert len(timed) == sum(map(len, orders))
    for order in orders:  # latency, throughput and training of each, in every round
        assert sorted(order) == sorted("abcd" * 3)
    assert orders[0] != orders[1] != orders[2]
    assert [label for label, _ in timed] == sorted(label for label, _ in timed)
    assert told.steps[-1][1] == told.totals[-1]
    assert "4 networks, 3 rounds" in told.notes[0]


def test_the_time_bounds_the_rounds():
    assert csham.cost(CifarResNet(8), image_size=8, batch_sizes=[2], seconds=0.0).rounds == 3
    assert csham.cost(CifarResNet(8), image_size=8, batch_sizes=[2]).rounds == 15


def test_one_failure_is_one_row():
    networks = {
        "plain": CifarResNet(8),
        "unknown": lambda: csham.create_model("resnet20", attention="cshan"),
        "never": Broken(lambda network, x: True),
        "training": Broken(lambda network, x: network.training),
        "large": Broken(lambda network, x: len(x) > 1),
        "last": CifarResNet(8),
    }
    plain, unknown, never, training, large, last = csham.cost(networks, **SMALL)
    assert plain.failed == last.failed == ""
    assert unknown.failed.startswith("unknown attention 'cshan'. Did you mean 'csham'")
    assert unknown.params is None
    assert never.failed == "RuntimeError: maps too small"
    assert (never.params, never.flops, never.ratios["params"]) == (16, None, 16 / plain.params)
    assert training.failed == "training at batch size 2: RuntimeError: maps too small"
    assert training.latency_ms
    assert training.train_step_ms is None
    assert large.failed.startswith("inference at batch size 2: RuntimeError")
    assert large.latency_ms
    assert large.images_per_s is None
    with pytest.raises(UserError, match="maps too small"):
        csham.cost(Broken(lambda network, x: True), **SMALL)


def test_a_first_network_that_fails_leaves_no_ratios():
    _, second = csham.cost({"a": Broken(lambda network, x: True), "b": CifarResNet(8)}, **SMALL)
    assert set(second.ratios) == {"params"}
    assert second.latency_ms


def test_what_was_measured_before_an_interrupt_is_there(monkeypatch):
    comparison = Comparison(plain_and_attention(), Settings(input_size=(3, 16, 16), batch_sizes=(2,), rounds=5))
    sample, count = Task.sample, []

    def interrupted(task):
        count.append(task)
        if len(count) == 10:  # of six in a round
            raise KeyboardInterrupt
        sample(task)

    monkeypatch.setattr(Task, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison.run()
    plain, attention = comparison.costs()
    assert plain.latency_ms
    assert attention.train_step_ms
    assert "latency" in attention.ratios
    assert {plain.rounds, attention.rounds} <= {1, 2}


def test_before_anything_was_measured():
    [row] = Comparison({"a": CifarResNet(8)}, Settings(input_size=(3, 8, 8))).costs()
    assert (row.params, row.latency_ms, row.batch_size, row.rounds) == (None, None, 8, 0)


def test_networks_are_left_as_they_were():
    network = CifarResNet(8).train()
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    csham.cost(network, **SMALL)
    assert network.training
    assert network.fc.weight.grad.equal(torch.ones_like(network.fc.weight))
    assert network.conv1.weight.grad is None
    assert all(value.equal(state[name]) for name, value in network.state_dict().items())


class Observed(nn.Conv2d):
    """Merges what it learned in evaluation, counts its calls, and keeps the range of each channel, of no size before.

    So do layers of loralib and observers of quantization.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.merged, self.calls = False, 0
        self.register_buffer("range", torch.empty(0))
        self.register_buffer("last", torch.zeros(()))

    def train(self, mode=True):
        if self.merged == mode:
            self.weight.data += (-1) ** mode / 3
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        self.calls += 1
        self.range.resize_(x.shape[1]).copy_(x.detach().amax((0, 2, 3)))
        self.last.fill_(1)
        return super().forward(x)


def test_networks_that_remember_what_they_saw_are_left_as_they_were():
    network = nn.Sequential(Observed(3, 4, 3), nn.Flatten()).train()
    conv, weight = network[0], network[0].weight.detach().clone()
    conv.weight.grad = torch.ones_like(conv.weight)
    for measure in (lambda: csham.cost(network, **SMALL), lambda: csham.cost.count_flops(network, (3, 8, 8))):
        measure()
        assert (network.training, conv.training, conv.merged, conv.calls) == (True, True, False, 0)
        assert (conv.range.shape, conv.last) == ((0,), 0)
        assert conv.weight.equal(weight)
        assert conv.weight.grad.equal(torch.ones_like(weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_is_measured_in_its_own_type(dtype):
    network = CifarResNet(8).to(dtype)
    found = csham.cost(network, **SMALL)
    assert found.train_step_ms
    assert network.fc.weight.dtype == dtype


def test_a_frozen_network_has_no_training_step():
    network = CifarResNet(8).requires_grad_(False)
    with pytest.raises(UserError, match=r"training at batch size 2: .* all of them are frozen.*training=False"):
        csham.cost(network, **SMALL)
    assert csham.cost(network, **SMALL, training=False).latency_ms


@pytest.mark.parametrize("given", [{}, {"device": "meta"}])
def test_nothing_is_measured_on_the_meta_device(given):
    with pytest.raises(UserError, match="nothing is computed on the meta device"):
        csham.cost(CifarResNet(8).to("cpu" if given else "meta"), **SMALL, **given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": None}, "image_size=pixels or input_size"),
        ({"input_size": (3, 8, 8)}, "one of the two"),
        ({"image_size": 0}, "input_size must be whole numbers"),
        ({"image_size": None, "input_size": (8, 8)}, r"\(C, H, W\)"),
        ({"batch_sizes": [0]}, "batch_sizes must be whole numbers of at least 1"),
        ({"rounds": 0}, "rounds must be"),
        ({"precisions": ["bf61"]}, "unknown precision 'bf61'. Did you mean 'bf16'"),
        ({"precisions": []}, "at least one"),
        ({"batch_sizes": [1, 2]}, "one network gives one Cost"),
        *(({"seconds": seconds}, "seconds must be a number of 0 or more") for seconds in (-1, math.nan, math.inf)),
        *(({"seed": seed}, r"seed must be a whole number from 0 to below 2\*\*63") for seed in (-1, 2**63, 0.5)),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message):
        csham.cost(CifarResNet(8), **{**SMALL, **settings})


def test_whole_numbers_may_be_numpys():
    one = np.int64(1)
    settings = Settings(input_size=(3, 8 * one, 8), batch_sizes=(one,), rounds=one, seed=one)
    assert json.loads(json.dumps(asdict(settings)))["input_size"] == [3, 8, 8]


def test_no_networks():
    with pytest.raises(UserError, match="no networks"):
        csham.cost({}, **SMALL)


@pytest.mark.long
@pytest.mark.slow
def test_compiled_beside_eager_and_what_does_not_compile():
    def fails(network, x):
        return torch.compiler.is_compiling()

    networks = {"plain": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), "never": Broken(fails)}
    found = csham.cost(networks, image_size=8, batch_sizes=[1], rounds=1, compiled=[False, True], training=False)
    assert [(c.name, c.compiled, bool(c.failed)) for c in found] == [
        ("plain", False, False), ("plain", True, False), ("never", False, False), ("never", True, True),
    ]  # fmt: skip
    assert found[1].latency_ms
    assert found[1].peak_mib
    assert "maps too small" in found[3].failed


def test_quartiles_of_known_samples():
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([]) is None


class InTwo(nn.Module):
    """A network whose graph breaks in its own forward, of which torch keeps a version for each depth."""

    def __init__(self, depth):
        super().__init__()
        self.first = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(depth)])
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.last(x.mean((2, 3)))


@pytest.mark.slow
def test_every_network_of_a_class_is_compiled_and_torch_s_own_limits_stay(monkeypatch):
    from torch._dynamo import config
    from torch._dynamo.testing import CompileCounter

    before = config.recompile_limit, config.accumulated_recompile_limit
    counter = CompileCounter()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile(function, backend=counter, **settings))
    count = before[0] + 2
    networks = {f"depth {number}": InTwo(1 + number) for number in range(count)}
    costs = csham.cost(networks, image_size=8, batch_sizes=[1], rounds=1, compiled=[True], training=False)
    assert [one.failed for one in costs] == [""] * count
    assert counter.frame_count > count  # the parts behind the break are alike
    assert (config.recompile_limit, config.accumulated_recompile_limit) == before
