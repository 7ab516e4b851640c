"""Passes: what they do and leave, how they are timed, and peaks that are known beforehand."""

import gc
from contextlib import suppress
from itertools import islice

import pytest
import torch
from torch import nn

from csham.backbones import CifarResNet
from csham.cost.passes import (
    calls_for,
    forward_of,
    inference,
    orders,
    peak_bytes,
    seconds_per_call,
    static_bytes,
    training,
    without_gradients,
)

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture
def network():
    return CifarResNet(8, num_classes=4)


def test_inference_runs_without_gradients_in_evaluation_mode(network):
    images = torch.randn(2, 3, 16, 16)
    with inference(network, forward_of(network, CPU, "fp32", False), images) as run:
        y = run()
    assert y.is_inference()
    assert not network.training
    torch.testing.assert_close(y, network(images))


def test_a_training_step_does_all_the_work_and_changes_no_weight(network):
    weights = [p.detach().clone() for p in network.parameters()]
    reached = []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: reached.append(p.grad.abs().sum() > 0))
    with training(network, forward_of(network, CPU, "fp32", False), torch.randn(4, 3, 16, 16)) as step:
        step()
        step()
        assert network.training
    assert len(reached) == 2 * len(weights)
    assert sum(map(bool, reached)) > len(weights)
    assert all(a.equal(b) for a, b in zip(weights, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())


class Rooted(nn.Module):
    """The root of a mean of zeros, whose gradient is not finite."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)

    def forward(self, x):
        return self.conv(0 * x).mean((2, 3)).sqrt()


@pytest.mark.parametrize("ended_by", [None, KeyboardInterrupt])
def test_weights_outlive_a_gradient_that_is_not_finite(ended_by):
    network = Rooted()
    weight = network.conv.weight.detach().clone()
    step_of = training(network, forward_of(network, CPU, "fp32", False), torch.randn(2, 3, 4, 4))
    with suppress(KeyboardInterrupt), step_of as step:
        step()
        assert not network.conv.weight.isfinite().any()
        if ended_by is not None:
            raise ended_by
    assert network.conv.weight.equal(weight)


def test_bf16_is_autocast(network):
    seen = []
    network.layer1[0].conv1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with inference(network, forward_of(network, CPU, "bf16", False), torch.randn(2, 3, 16, 16)) as run:
        run()
    assert seen == [torch.bfloat16]


def test_gradients_come_back(network):
    network.fc.bias.grad = torch.ones(4)
    with (
        without_gradients(network),
        training(network, forward_of(network, CPU, "fp32", False), torch.randn(4, 3, 16, 16)) as step,
    ):
        step()
    assert network.fc.bias.grad.equal(torch.ones(4))
    assert network.fc.weight.grad is None


@pytest.mark.slow
def test_every_compiled_network_is_compiled(monkeypatch):
    """More networks of one class than torch compiles for one function by default."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile(function, backend=counter, **settings))
    networks = [nn.Sequential(nn.Linear(4, 4)).eval() for _ in range(12)]
    x = torch.randn(2, 4)
    for network in networks:
        forward = forward_of(network, CPU, "fp32", True)
        with inference(network, forward, x) as run:
            torch.testing.assert_close(run(), network(x))
            run()
    assert counter.frame_count == 12


def test_every_order_holds_every_item_and_depends_on_the_seed():
    items = list("abcdefgh")
    drawn = list(islice(orders(items, 3), 20))
    assert all(sorted(order) == items for order in drawn)
    assert len({tuple(order) for order in drawn}) > 15
    assert drawn == list(islice(orders(items, 3), 20))
    assert drawn != list(islice(orders(items, 4), 20))
    # Nobody always comes first.
    assert len({order[0] for order in drawn}) > 4


def test_a_block_is_as_long_as_needed():
    assert calls_for(1.0) == 1
    assert calls_for(0.02) == 1
    assert calls_for(0.006) == 4
    assert calls_for(0.0) > 1000


def test_calls_are_made_with_the_collector_at_rest():
    seen = []
    assert seconds_per_call(lambda: seen.append(gc.isenabled()), CPU, 5) >= 0
    assert seen == [False] * 5
    assert gc.isenabled()


def megabytes(count):
    return torch.empty(count * MIB, dtype=torch.uint8)


def test_a_chain_of_tensors_of_known_sizes():
    held = []

    def chain():
        a = megabytes(5)
        b = megabytes(7)  # 12
        del a  # 7
        held.append(megabytes(3))  # 10
        del b  # 3
        c, d = megabytes(4), megabytes(6)  # 13: the most
        del c, d
        held.append(megabytes(8))  # 11

    assert peak_bytes(chain, CPU) == 13 * MIB


def test_what_was_there_before_does_not_count():
    before = [megabytes(50)]
    assert peak_bytes(lambda: (before.clear(), megabytes(3)), CPU) <= 3 * MIB


@pytest.mark.parametrize(("backward", "expected"), [(False, 2), (True, 7)])
def test_a_pass_keeps_what_its_backward_needs(backward, expected):
    """Five ReLUs in a row, each with a map of 1 MiB: two at once, or all five, a gradient and the one made from it."""
    network = nn.Sequential(*[nn.ReLU() for _ in range(5)])
    x = torch.ones(MIB // 4, requires_grad=backward)
    gradient = torch.ones_like(x)

    def run():
        y = network(x)
        if backward:
            y.backward(gradient)

    assert peak_bytes(run, CPU) == pytest.approx(expected * MIB, abs=1000)


def test_parameters_buffers_and_momentum():
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    parameters = 4 * (10 * 20 + 20 + 20 + 20)
    buffers = 4 * 20 * 2 + 8
    assert static_bytes(network) == parameters + buffers
    assert static_bytes(network, momentum=True) == 2 * parameters + buffers
    network[0].weight.requires_grad_(False)
    assert static_bytes(network, momentum=True) == 2 * parameters + buffers - 4 * 10 * 20


def test_shared_parameters_count_once():
    a, b = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    b.weight = a.weight
    assert static_bytes(nn.Sequential(a, b)) == 400


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_counts_what_its_allocator_gives():
    device = torch.device("cuda")
    assert peak_bytes(lambda: torch.empty(10 * MIB, dtype=torch.uint8, device=device), device) == 10 * MIB
    network, x = CifarResNet(8).to(device).eval(), torch.zeros(1, 3, 32, 32, device=device)
    assert peak_bytes(lambda: network(x), device) > 0
