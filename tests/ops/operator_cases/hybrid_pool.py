"""CSHAM's channel weights by their definition, and the statistics over the channels by plain formulas."""

import torch
from operator_cases.position_pool import statistics

from csham.ops import reference


def examples(x):
    shapes = {"avg_weight": (1, 1, 3), "avg_bias": (1,), "max_weight": (1, 1, 3), "max_bias": (1,)}
    shapes |= {"fuse_weight": (1, 2, 3), "fuse_bias": (1,)}
    filters = {name: torch.randn(shape) / 2 for name, shape in shapes.items()}
    neighbor_weight = None if min(x.shape[2:]) < 2 else torch.randn(1, x.shape[1], 3, 3)
    whole = {"x": x, **filters, "relu": False, "positions": True, "weighted": True, "neighbor_weight": neighbor_weight}
    return [
        whole,
        whole | {"relu": True, "weighted": False},
        whole | {"positions": False, "neighbor_weight": None},
    ]


def plain(x, *arguments):
    *filters, relu, positions, weighted, neighbor_weight = arguments
    w = reference.channel_weights(x, *filters, torch.relu if relu else lambda value: value)
    found = {"w": w}
    if positions:
        found |= statistics(w[:, :, None, None] * x if weighted else x, neighbor_weight)
    return found
