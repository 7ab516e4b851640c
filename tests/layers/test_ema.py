"""Efficient multi-scale attention against its definition, group by group."""

import numpy as np
import pytest
import torch


def formula(x, state, o, groups):
    B, C = x.shape[:2]
    width = C // groups
    y = np.empty_like(x)
    for b, g in np.ndindex(B, groups):
        channels = slice(g * width, (g + 1) * width)
        group = x[b : b + 1, channels]
        rows = o.sigmoid(o.dense(group.mean(3), state, "conv1x1"))
        columns = o.sigmoid(o.dense(group.mean(2), state, "conv1x1"))
        wide = o.group_norm(group * rows[:, :, :, None] * columns[:, :, None], state, "gn", width)
        local = o.convolve(group, state, "conv3x3")
        by_wide, by_local = (o.softmax(maps.mean((2, 3)), 1)[0] for maps in (wide, local))
        logits = sum(by_wide[c] * local[0, c] + by_local[c] * wide[0, c] for c in range(width))
        y[b, channels] = group[0] * o.sigmoid(logits)
    return y


@pytest.mark.parametrize(
    ("channels", "settings", "groups"),
    [(12, {"groups": 3}, 3), (6, {"groups": 1}, 1), (12, {"groups": 5}, 4), (6, {}, 6)],
)
def test_equals_the_formula(drawn, loops, channels, settings, groups):
    layer, state = drawn("ema", channels, **settings)
    assert layer.groups == groups
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), formula(x.numpy(), state, loops, groups), rtol=1e-10, atol=1e-12)


def test_keys_are_the_authors(drawn):
    keys = ["gn.weight", "gn.bias", "conv1x1.weight", "conv1x1.bias", "conv3x3.weight", "conv3x3.bias"]
    assert list(drawn("ema", 64)[0].state_dict()) == keys
