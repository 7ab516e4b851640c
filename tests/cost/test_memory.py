"""Peaks that are known beforehand."""

import pytest
import torch
from torch import nn

from csham.backbones import CifarResNet
from csham.cost.memory import peak_bytes
from csham.cost.passes import static_bytes

CPU = torch.device("cpu")
MIB = 2**20


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


@pytest.mark.parametrize(("training", "expected"), [(False, 2), (True, 7)])
def test_a_pass_keeps_what_its_backward_needs(training, expected):
    """Five ReLUs in a row, each with a map of 1 MiB: two at once, or all five, a gradient and the one made from it."""
    network = nn.Sequential(*[nn.ReLU() for _ in range(5)])
    x = torch.ones(MIB // 4, requires_grad=training)
    gradient = torch.ones_like(x)

    def run():
        y = network(x)
        if training:
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
