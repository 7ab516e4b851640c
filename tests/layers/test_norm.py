"""Norms of a single value, and everything else as torch's."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import csham
from csham.layers.checks import largest_divisor
from csham.layers.norm import BatchNorm2d, GroupNorm


def test_batch_norm_is_torchs_but_for_a_single_value():
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5)
        assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
    before = ours.running_mean.clone()
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(x)
    assert torch.equal(ours(x), theirs.eval()(x))
    assert torch.equal(ours.running_mean, before)


@given(st.floats(0.001, 0.9), st.integers(1, 40))
def test_running_statistics_are_the_weighted_average_of_all_batches(momentum, batches):
    norm = BatchNorm2d(2, momentum=momentum)
    seen = [torch.randn(4, 2, 3, 3) * (5 + n) + n for n in range(batches)]
    for x in seen:
        norm(x)
    weights = momentum * (1 - momentum) ** torch.arange(batches - 1, -1, -1, dtype=torch.float64)
    weights /= weights.sum()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).double()
    variances = torch.stack([x.var((0, 2, 3)) for x in seen]).double()
    torch.testing.assert_close(norm.running_mean.double(), weights @ means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.running_var.double(), weights @ variances, rtol=1e-4, atol=1e-4)


def test_after_long_training_the_rate_is_the_momentum():
    norm = BatchNorm2d(1, momentum=0.01)
    norm.num_batches_tracked.fill_(5000)
    assert float(norm.averaging_rate()) == pytest.approx(0.01, rel=1e-6)
    theirs = nn.BatchNorm2d(1, momentum=0.01)
    x = torch.randn(8, 1, 4, 4)
    norm(x), theirs(x)
    torch.testing.assert_close(norm.running_var, theirs.running_var)


@pytest.mark.parametrize("momentum", [0.0, 1.0, None])
def test_momentums_without_a_beginning_are_torchs(momentum):
    ours, theirs = BatchNorm2d(2, momentum=momentum), nn.BatchNorm2d(2, momentum=momentum)
    for _ in range(3):
        x = torch.randn(4, 2, 3, 3)
        ours(x), theirs(x)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, msg=key)


def test_statistics_that_come_without_a_count_are_kept():
    norm = BatchNorm2d(1, momentum=0.01)
    trained = {"weight": torch.ones(1), "bias": torch.zeros(1), "running_mean": torch.tensor([7.0])}
    norm.load_state_dict({**trained, "running_var": torch.tensor([3.0])}, strict=True)
    norm(torch.randn(8, 1, 4, 4))
    assert float(norm.running_mean) == pytest.approx(7 * 0.99, abs=0.01)
    norm.reset_running_stats()
    x = torch.randn(8, 1, 4, 4)
    norm(x)
    torch.testing.assert_close(norm.running_mean, x.mean().reshape(1))


def test_a_norm_that_is_settled_keeps_its_statistics():
    norm = BatchNorm2d(1, momentum=0.01)
    norm.running_mean.fill_(7.0)
    norm.settle()
    norm(torch.randn(8, 1, 4, 4))
    assert float(norm.running_mean) == pytest.approx(7 * 0.99, abs=0.01)
    BatchNorm2d(1, track_running_stats=False).settle()  # there is nothing to keep


WITH_NORMS = ["csham", "csham_spatial", "cbam", "lcbam", "bam", "triplet"]


def statistics(layer):
    return {name: value.clone() for name, value in layer.state_dict().items() if "running" in name or "num_" in name}


@pytest.mark.parametrize("name", WITH_NORMS)
def test_an_empty_batch_in_training_leaves_the_statistics(name):
    layer = csham.create_attention(name, 16)
    layer(torch.randn(4, 16, 8, 8))
    before = statistics(layer)
    assert before
    assert layer(torch.randn(0, 16, 8, 8)).shape == (0, 16, 8, 8)
    torch.testing.assert_close(statistics(layer), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", WITH_NORMS)
def test_statistics_that_are_not_to_be_tracked_stay_while_batches_are_normalised_by_their_own(name):
    layer = csham.create_attention(name, 16)
    x = torch.randn(4, 16, 8, 8)
    tracked = layer(x)
    before = statistics(layer)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    torch.testing.assert_close(layer(x), tracked)
    torch.testing.assert_close(statistics(layer), before, rtol=0, atol=0)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", WITH_NORMS)
def test_a_pass_keeps_the_statistics_it_used_for_its_gradient(name, kernels):
    """In evaluation, and on one image so small that a norm has one value."""
    torch.manual_seed(0)
    layer = csham.create_attention(name, 16)
    x = torch.randn(4, 16, 8, 8)
    passes = [(False, x), (True, x[:1, :, :4, :4])]
    layer(x)
    with csham.ops.use_kernels(kernels):
        for training, given in passes:
            alone = copy.deepcopy(layer).train(training)
            alone(given).square().sum().backward()
            layer.train(training)
            loss = layer(given).square().sum()
            layer.train()
            layer(3 * x + 1)  # whose statistics are others
            loss.backward()
            for one, other in zip(layer.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(one.grad, other.grad)
            layer.zero_grad()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_torchs_but_for_a_single_value(groups):
    ours, theirs = GroupNorm(groups, 6), nn.GroupNorm(groups, 6)
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(ours(x), theirs(x))
    if groups == 6:
        nn.init.normal_(ours.bias)
        # x times 1 / sqrt(eps) = 316 is added and taken off again
        torch.testing.assert_close(ours(torch.randn(1, 6, 1, 1))[0, :, 0, 0], ours.bias, rtol=0, atol=1e-3)


def test_the_largest_divisor():
    for number in range(1, 40):
        for at_most in range(1, 45):
            expected = max(d for d in range(1, at_most + 1) if number % d == 0)
            assert largest_divisor(number, at_most) == expected
