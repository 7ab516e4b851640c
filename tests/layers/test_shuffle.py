"""Shuffle attention against its definition, channel by channel."""

import numpy as np
import pytest
import torch

import csham


def formula(x, state, o, groups):
    B, C = x.shape[:2]
    half = C // groups // 2
    scaled = np.empty_like(x)
    for b, g, k in np.ndindex(B, groups, half):
        first, second = 2 * half * g + k, 2 * half * g + half + k
        weight, bias, s_weight, s_bias = (state[key][0, k, 0, 0] for key in ("cweight", "cbias", "sweight", "sbias"))
        scaled[b, first] = x[b, first] * o.sigmoid(weight * x[b, first].mean() + bias)
        normal = (x[b, second] - x[b, second].mean()) / np.sqrt(x[b, second].var() + 1e-5)
        normal = normal * state["gn.weight"][k] + state["gn.bias"][k]
        scaled[b, second] = x[b, second] * o.sigmoid(s_weight * normal + s_bias)
    shuffled = np.empty_like(x)
    for c in range(C // 2):
        shuffled[:, 2 * c], shuffled[:, 2 * c + 1] = scaled[:, c], scaled[:, C // 2 + c]
    return shuffled


@pytest.mark.parametrize(
    ("channels", "settings", "groups"),
    [(12, {"groups": 3}, 3), (12, {"groups": 1}, 1), (12, {"groups": 4}, 3), (12, {}, 6)],
)
def test_equals_the_formula(drawn, loops, channels, settings, groups):
    layer, state = drawn("shuffle", channels, **settings)
    assert layer.groups == groups
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), formula(x.numpy(), state, loops, groups), rtol=1e-10, atol=1e-12)


def test_keys_and_initial_values_are_the_authors():
    layer = csham.create_attention("shuffle", 256)
    keys = ["cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias"]
    assert list(layer.state_dict()) == keys
    assert [p.unique().tolist() for p in layer.parameters()] == [[0], [1], [0], [1], [1], [0]]
