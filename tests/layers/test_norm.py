"""Norms of a single value, and everything else as torch's."""

import pytest
import torch
from torch import nn

from csham.layers.grouping import largest_divisor
from csham.layers.norm import BatchNorm2d, GroupNorm


def test_batch_norm_is_torchs_but_for_a_single_value():
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(2, 3, 4, 5)
        assert torch.equal(ours(x), theirs(x))
    before = ours.running_mean.clone()
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        theirs(x)
    assert torch.equal(ours(x), theirs.eval()(x))
    assert torch.equal(ours.running_mean, before)


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
