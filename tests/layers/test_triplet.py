"""Triplet attention against its definition on permuted maps."""

import numpy as np
import pytest
import torch


def gate(x, state, o, key):
    """Attend to (B, first, rows, columns) over its rows and columns, the first axis pooled away."""
    pooled = np.stack([x.max(1), x.mean(1)], 1)
    return x * o.sigmoid(o.batch_norm(o.convolve(pooled, state, f"{key}.conv.conv"), state, f"{key}.conv.bn"))


def formula(x, state, o):
    over_height = gate(x.transpose(0, 2, 1, 3), state, o, "cw").transpose(0, 2, 1, 3)
    over_width = gate(x.transpose(0, 3, 2, 1), state, o, "hc").transpose(0, 3, 2, 1)
    return (over_height + over_width + gate(x, state, o, "hw")) / 3


@pytest.mark.parametrize("settings", [{}, {"kernel_size": 3}])
def test_equals_the_formula(drawn, loops, settings):
    layer, state = drawn("triplet", 6, **settings)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), formula(x.numpy(), state, loops), rtol=1e-10, atol=1e-12)


def test_keys_are_the_authors(drawn):
    kinds = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    assert list(drawn("triplet", 6)[0].state_dict()) == [
        f"{s}.conv.{kind}" for s in ("cw", "hc", "hw") for kind in kinds
    ]


def test_an_even_kernel_is_refused(drawn):
    with pytest.raises(ValueError, match="TripletAttention: kernel_size must be an odd whole number, got 4"):
        drawn("triplet", 6, kernel_size=4)
