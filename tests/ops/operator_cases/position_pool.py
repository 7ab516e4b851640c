"""Statistics over the channels, by plain formulas."""

import torch
import torch.nn.functional as F


def examples(x):
    w, neighbor_weight = torch.rand(x.shape[:2]) + 0.5, torch.randn(1, x.shape[1], 3, 3)
    plain = {"x": x, "w": None, "neighbor_weight": None}
    return [plain | {"w": w}] + ([] if min(x.shape[2:]) < 2 else [plain | {"w": w, "neighbor_weight": neighbor_weight}])


def plain(x, w, neighbor_weight):
    return statistics(x if w is None else w[:, :, None, None] * x, neighbor_weight)


def statistics(t, neighbor_weight):
    """Mean and maximum over the channels, and the neighbour term, padded as TensorFlow does."""
    found = {"mean": t.mean(1, keepdim=True), "max": t.amax(1, keepdim=True)}
    if neighbor_weight is not None:
        pooled = F.avg_pool2d(t, 2)
        height, width = pooled.shape[2:]
        padded = F.pad(pooled, (width % 2, 1, height % 2, 1))
        found["neighbors"] = F.conv2d(padded, neighbor_weight, stride=2)
    return found
