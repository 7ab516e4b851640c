"""Layers with every number drawn, and the operations of the formulas as plain loops over arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import csham


@pytest.fixture
def drawn():
    """Function that builds an attention in float64, evaluation mode, with random parameters and running statistics.

    It returns the layer and its state as arrays.
    """

    def build(name, channels, **settings):
        layer = csham.create_attention(name, channels, dtype=torch.float64, **settings).eval()
        state = {
            key: torch.rand_like(value) + 0.5 if key.endswith("running_var") else torch.randn_like(value)
            for key, value in layer.state_dict().items()
            if value.is_floating_point()
        }
        layer.load_state_dict(state, strict=False)
        return layer, {key: value.numpy() for key, value in state.items()}

    return build


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    powers = np.exp(x)
    return powers / powers.sum(axis, keepdims=True)


def dense(x, state, key):
    """1x1 convolution or linear layer along the axis of the channels, the second."""
    weight = state[f"{key}.weight"]
    weight = weight.reshape(weight.shape[:2])
    out = np.einsum("oc,bc...->bo...", weight, x)
    return out + state[f"{key}.bias"].reshape(-1, *[1] * (x.ndim - 2)) if f"{key}.bias" in state else out


def convolve(x, state, key, dilation=1):
    """Correlation of (B, I, H, W), zeros outside; I input channels for each output channel, or one (depthwise)."""
    weight = state[f"{key}.weight"]
    outputs, inputs, rows, columns = weight.shape
    B, _, H, W = x.shape
    out = np.zeros((B, outputs, H, W))
    for b, o, i, j in np.ndindex(out.shape):
        for c, u, v in np.ndindex(inputs, rows, columns):
            top, left = i + (u - rows // 2) * dilation, j + (v - columns // 2) * dilation
            if 0 <= top < H and 0 <= left < W:
                out[b, o, i, j] += weight[o, c, u, v] * x[b, c if inputs > 1 or outputs == 1 else o, top, left]
    return out + state[f"{key}.bias"][:, None, None] if f"{key}.bias" in state else out


def batch_norm(x, state, key, eps=1e-5):
    """Norm by the running statistics of each channel."""
    mean, var, weight, bias = (
        state[f"{key}.{name}"].reshape(-1, *[1] * (x.ndim - 2))
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def group_norm(x, state, key, groups, eps=1e-5):
    """Norm of each image's groups of channels."""
    out = np.empty_like(x)
    size = x.shape[1] // groups
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            group = x[b, c // size * size : c // size * size + size]
            normal = (x[b, c] - group.mean()) / np.sqrt(((group - group.mean()) ** 2).mean() + eps)
            out[b, c] = normal * state[f"{key}.weight"][c] + state[f"{key}.bias"][c]
    return out


@pytest.fixture
def loops():
    """The operations above, which share no code with torch."""
    return SimpleNamespace(
        sigmoid=sigmoid,
        softmax=softmax,
        dense=dense,
        convolve=convolve,
        batch_norm=batch_norm,
        group_norm=group_norm,
        relu=lambda x: np.maximum(x, 0),
        silu=lambda x: x * sigmoid(x),
    )
