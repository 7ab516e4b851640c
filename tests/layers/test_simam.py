"""SimAM against the paper's energy, value by value."""

import numpy as np
import pytest
import torch

import csham


def formula(x, e_lambda=1e-4):
    y = np.empty_like(x)
    for b, c in np.ndindex(x.shape[:2]):
        channel = x[b, c]
        mean = channel.mean()
        variance = ((channel - mean) ** 2).sum() / (channel.size - 1)
        for i, j in np.ndindex(channel.shape):
            t = channel[i, j]
            energy = 4 * (variance + e_lambda) / ((t - mean) ** 2 + 2 * variance + 2 * e_lambda)
            y[b, c, i, j] = t / (1 + np.exp(-1 / energy))
    return y


@pytest.mark.parametrize("settings", [{}, {"e_lambda": 0.5}])
def test_equals_the_formula(settings):
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64)
    got = csham.create_attention("simam", 5, **settings)(x)
    np.testing.assert_allclose(got, formula(x.numpy(), **settings), rtol=1e-12)


def test_a_single_pixel_has_no_variance():
    x = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(csham.create_attention("simam", 3)(x), x * torch.tensor(0.5).sigmoid())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_do_not_overflow_in_half_precision(dtype):
    x = (1000 * torch.randn(2, 3, 4, 4)).to(dtype)
    y = csham.create_attention("simam", 3)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), csham.create_attention("simam", 3)(x.float()), rtol=1e-2, atol=1)


@pytest.mark.parametrize("e_lambda", [0, -1, float("nan")])
def test_lambda_must_be_positive(e_lambda):
    with pytest.raises(ValueError, match="e_lambda must be above 0, got"):
        csham.create_attention("simam", 3, e_lambda=e_lambda)
