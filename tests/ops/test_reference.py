"""The reference against loops written from the formulas of the specification."""

import math
import re

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from csham import ops


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def relu(value):
    return max(value, 0.0)


def identity(value):
    return value


def conv1d_loop(rows, weight, bias):
    """Zero-padded correlation of (rows, C) with (rows, k), one output row."""
    channels, k = rows.shape[1], weight.shape[1]
    out = np.full(channels, float(bias))
    for c in range(channels):
        for r in range(rows.shape[0]):
            for t in range(k):
                source = c + t - k // 2
                if 0 <= source < channels:
                    out[c] += weight[r, t] * rows[r, source]
    return out


def channel_weights_loop(x, parameters, act):
    aw, ab, mw, mb, fw, fb = parameters
    out = np.empty(x.shape[:2])
    for b in range(x.shape[0]):
        a = np.array([[x[b, c].mean() for c in range(x.shape[1])]])
        m = np.array([[x[b, c].max() for c in range(x.shape[1])]])
        rows = np.stack(
            [
                [act(v) for v in conv1d_loop(a, aw[0], ab[0])],
                [act(v) for v in conv1d_loop(m, mw[0], mb[0])],
            ]
        )
        out[b] = [sigmoid(act(v)) for v in conv1d_loop(rows, fw[0], fb[0])]
    return out


def conv2d_at(maps, weight, top, left):
    """Correlation of (C, H, W) with (C, k, k) whose window starts at (top, left), zeros outside."""
    total = 0.0
    for c in range(maps.shape[0]):
        for i in range(weight.shape[1]):
            for j in range(weight.shape[2]):
                if 0 <= top + i < maps.shape[1] and 0 <= left + j < maps.shape[2]:
                    total += weight[c, i, j] * maps[c, top + i, left + j]
    return total


def same_padding(n):
    out = -(-n // 2)
    return out, max((out - 1) * 2 + 3 - n, 0) // 2


def spatial_weights_loop(x, main, neighbor, act):
    """Without batch norm, which is given to the reference as a plain factor of 1."""
    batch, _, height, width = x.shape
    out = np.empty((batch, 1, height, width))
    for b in range(batch):
        q = np.stack([x[b].mean(0), x[b].max(0)])
        pooled = x[b][:, : height // 2 * 2, : width // 2 * 2]
        pooled = pooled.reshape(x.shape[1], height // 2, 2, width // 2, 2).mean((2, 4))
        if min(height, width) >= 2:
            rows, top = same_padding(height // 2)
            columns, left = same_padding(width // 2)
            coarse = np.array(
                [
                    [conv2d_at(pooled, neighbor[0], 2 * i - top, 2 * j - left) for j in range(columns)]
                    for i in range(rows)
                ]
            )
        for i in range(height):
            for j in range(width):
                logit = act(conv2d_at(q, main[0], i - 3, j - 3))
                if min(height, width) >= 2:
                    source_i = math.floor((i + 0.5) * rows / height)
                    source_j = math.floor((j + 0.5) * columns / width)
                    logit += coarse[source_i, source_j]
                out[b, 0, i, j] = sigmoid(logit)
    return out


# Smallest map, one row, odd and unequal sides, even sides that are no multiple of four.
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


@given(
    shape=SHAPES,
    k=st.sampled_from([1, 3, 5]),
    linear=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 999),
)
def test_channel_weights_equal_the_loop(shape, k, linear, ties, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, shape).astype(float) if ties else rng.normal(size=shape)
    parameters = [rng.normal(size=s) for s in [(1, 1, k), (1,), (1, 1, k), (1,), (1, 2, k), (1,)]]
    got = ops.channel_weights(torch.tensor(x), *map(torch.tensor, parameters), nn.Identity() if linear else nn.ReLU())
    np.testing.assert_allclose(
        got, channel_weights_loop(x, parameters, identity if linear else relu), rtol=1e-10, atol=1e-12
    )


@given(shape=SHAPES, linear=st.booleans(), seed=st.integers(0, 999))
def test_spatial_weights_equal_the_loop(shape, linear, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    main, neighbor = rng.normal(size=(1, 2, 7, 7)), rng.normal(size=(1, shape[1], 3, 3))
    got = ops.spatial_weights(
        torch.tensor(x),
        torch.tensor(main),
        nn.Identity(),
        torch.tensor(neighbor),
        nn.Identity(),
        nn.Identity() if linear else nn.ReLU(),
    )
    np.testing.assert_allclose(
        got, spatial_weights_loop(x, main, neighbor, identity if linear else relu), rtol=1e-10, atol=1e-12
    )


def test_upsampling_takes_the_exact_source_index_where_float32_would_miss_it():
    from csham.ops.reference import _upsample_nearest

    for side in (7, 142, 224, 383):
        source = -(-(side // 2) // 2)
        got = _upsample_nearest(torch.arange(source)[None, None, :, None].expand(1, 1, source, 2), side, 3)
        expected = [math.floor((i + 0.5) * source / side) for i in range(side)]
        assert got[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("linear", [True, False])
def test_gradients_agree_with_finite_differences(linear):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    act = nn.Identity() if linear else nn.ReLU()
    x = draw(2, 3, 5, 6)
    parameters = [draw(*s) for s in [(1, 1, 3), (1,), (1, 1, 3), (1,), (1, 2, 3), (1,)]]
    torch.autograd.gradcheck(lambda *args: ops.scale(args[0], ops.channel_weights(*args, act)), (x, *parameters))

    def spatial(x, main, neighbor):
        return ops.scale(x, ops.spatial_weights(x, main, torch.tanh, neighbor, torch.tanh, act))

    torch.autograd.gradcheck(spatial, (x, draw(1, 2, 7, 7), draw(1, 3, 3, 3)))


def test_the_gradient_of_a_maximum_is_shared_among_ties():
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    fuse = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    ops.channel_weights(x, one, zero, one, zero, fuse, zero, nn.Identity()).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, x.grad.sum() / 4))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 1, 4, 5), (2, 3, 4, 5)])
def test_scale_multiplies_by_channel_by_position_or_by_value(shape):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=shape)
    got = ops.scale(torch.tensor(x), torch.tensor(weights))
    for b, c, i, j in np.ndindex(x.shape):
        index = (b, c) if len(shape) == 2 else (b, c % shape[1], i % shape[2], j % shape[3])
        assert got[b, c, i, j] == x[b, c, i, j] * weights[index]


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1, 4), (2, 1, 4, 5), (1, 3, 4, 4)])
def test_scale_refuses_weights_of_another_shape(shape):
    message = (
        r"channel weights \(B, C\) = \(2, 3\).*spatial weights.*full weights \(B, C, H, W\) = \(2, 3, 4, 4\).*got "
    )
    with pytest.raises(ValueError, match=message + re.escape(str(shape))):
        ops.scale(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
