"""Double attention against sums over positions and descriptors."""

import numpy as np
import pytest
import torch


def formula(x, state, o):
    features, gather, distribute = (o.dense(x, state, key) for key in ("phi", "theta", "rho"))
    gather = np.exp(gather) / np.exp(gather).sum((2, 3), keepdims=True)
    distribute = np.exp(distribute) / np.exp(distribute).sum(1, keepdims=True)
    found = np.zeros_like(features)
    for b, m, n in np.ndindex(features.shape[0], features.shape[1], features.shape[1]):
        descriptor = (features[b, m] * gather[b, n]).sum()  # entry (m, n) of the gathered matrix
        found[b, m] += descriptor * distribute[b, n]
    return x + o.dense(found, state, "out")


@pytest.mark.parametrize("settings", [{}, {"reduction": 2}, {"reduction": 100}])
def test_equals_the_formula(drawn, loops, settings):
    layer, state = drawn("a2", 8, **settings)
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), formula(x.numpy(), state, loops), rtol=1e-10, atol=1e-12)
