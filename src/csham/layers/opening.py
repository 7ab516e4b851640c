"""Gates that start open: biases before the weights of an attention, with which these start near 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from csham.errors import UserError

__all__ = ["OPEN", "open_gate"]

OPEN = 3.0
"""Logit at which the weights of an attention start open, 0.95 behind a sigmoid.

Highway networks start their gates by a bias, so that at first they carry on what comes in (Srivastava, Greff and
Schmidhuber, arXiv:1505.00387); that this is done to attention, and this value, are ours: further out a sigmoid has next
to no gradient.
"""


def open_gate(*layers: Any, gate: nn.Module | None = None) -> None:
    """Set the biases before a gate so that its weights start near 1; draws no random numbers.

    Args:
        *layers: Convolutions, linear layers or norms whose outputs are added up before the gate; one that is added
            twice is here twice. One without a bias gets one.
        gate: Makes weights of the sum; None for a sigmoid.

    Raises:
        UserError: The gate's weights do not come near 1, or a norm is without parameters.
    """
    logit = OPEN if gate is None else _logit(gate)
    for layer in layers:
        if layer.weight is None:
            raise UserError(
                f"open gates need a bias before the gate, and this {type(layer).__name__} has no parameters."
            )
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_empty(layer.weight.shape[0]))
        nn.init.constant_(layer.bias, logit / len(layers))


@torch.no_grad()
def _logit(gate: nn.Module) -> float:
    """Return the least number of which a gate makes what a sigmoid makes of :data:`OPEN`."""
    tried = torch.linspace(0, 8, 801)
    reached = gate(tried.clone()) >= torch.tensor(OPEN).sigmoid() - 1e-6
    if not reached.any():
        raise UserError(f"open gates: {type(gate).__name__} makes no weights near 1. Leave open_gates out.")
    return round(float(tried[reached][0]), 2)
