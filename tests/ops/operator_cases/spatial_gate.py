"""Spatial weights by plain formulas."""

import torch
import torch.nn.functional as F


def examples(x):
    B, _, H, W = x.shape
    norm = {"norm_weight": torch.rand(1) + 0.5, "norm_bias": torch.randn(1), "norm_mean": torch.full((1,), 0.3)}
    norm["norm_var"] = torch.full((1,), 4.0)
    given = {
        "mean": torch.randn(B, 1, H, W),
        "max": torch.randn(B, 1, H, W),
        "neighbors": torch.randn(B, 1, (H // 2 + 1) // 2, (W // 2 + 1) // 2) if min(H, W) >= 2 else None,
        "weight": torch.randn(1, 2, 7, 7),
        **norm,
        **{f"neighbor_{name}": value.clone() for name, value in norm.items()},
        "training": False,
        "neighbor_training": False,
        "eps": 1e-3,
        "neighbor_eps": 1e-3,
        "relu": False,
    }
    several = B * H * W > 1
    training = {"training": several, "neighbor_training": several and given["neighbors"] is not None, "relu": True}
    without = {"neighbors": None, "norm_weight": None, "norm_bias": None, "weight": torch.randn(1, 2, 3, 3)}
    return [given, given | training, given | without]


def plain(mean, max, neighbors, weight, *norms):
    norm, neighbor_norm, (training, neighbor_training, eps, neighbor_eps, relu) = norms[:4], norms[4:8], norms[8:]
    logits = _normalised(F.conv2d(torch.cat([mean, max], 1), weight, padding="same"), norm, training, eps)
    logits = logits.relu() if relu else logits
    if neighbors is not None:
        around = _normalised(neighbors, neighbor_norm, neighbor_training, neighbor_eps)
        logits = logits + F.interpolate(around, logits.shape[2:], mode="nearest-exact")
    return {"s": logits.sigmoid()}


def _normalised(x, norm, training, eps):
    weight, bias, mean, var = norm
    if training:
        mean, var = x.mean(), x.var(correction=0)
    x = (x - mean) / (var + eps).sqrt()
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
