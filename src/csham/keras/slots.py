"""Layers of PyTorch's that take weights from Keras, and the order of the dimensions of these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csham.errors import UserError
from csham.layers.channel import ChannelAttention
from csham.layers.norm import BatchNorm2d
from csham.layers.spatial import SpatialAttention

__all__ = ["CHANNEL_PARTS", "SPATIAL_PARTS", "Slot", "in_keras_order", "in_torch_order", "list_slots", "store"]

CHANNEL_PARTS = {"avg": "pool", "max": "pool", "join": "join"}
SPATIAL_PARTS = {"main": "main", "neighbor": "neighbor", "main_bn": "norm", "neighbor_bn": "norm"}
"""Parts of the two steps, which have these names in PyTorch and in Keras, and the kind of each."""


@dataclass(frozen=True)
class Slot:
    """A layer of ours that takes the weights of one of theirs.

    Attributes:
        name: Of the layer, as ``named_modules`` spells it.
        kind: One of ``pool``, ``join``, ``main``, ``neighbor``, ``norm`` and ``gate``.
        tensors: Tensors that it takes, and the shape that Keras has for each; in Keras' order.
    """

    name: str
    kind: str
    tensors: tuple[tuple[str, Tensor, tuple[int, ...]], ...]


def list_slots(module: nn.Module) -> list[Slot]:
    """List the layers that take weights, in the order of the module."""
    slots = []
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, ChannelAttention):
            slots += [_slot(f"{prefix}{n}", kind, getattr(part, n)) for n, kind in CHANNEL_PARTS.items()]
        elif isinstance(part, SpatialAttention):
            slots += [_slot(f"{prefix}{n}", kind, getattr(part, n)) for n, kind in SPATIAL_PARTS.items()]
        elif isinstance(gate := getattr(part, "gate", None), nn.Parameter) and gate.shape == (1,):
            slots.append(Slot(f"{prefix}gate", "gate", ((f"{prefix}gate", gate, ()),)))
    if all(slot.kind == "gate" for slot in slots):
        raise UserError(f"{type(module).__name__} has no ChannelAttention or SpatialAttention to load weights into.")
    return slots


def store(module: nn.Module, values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Put values into a module's tensors; running statistics count as those of many batches."""
    values = list(values)
    with torch.no_grad():
        for tensor, value in values:
            tensor.copy_(value)
    loaded = {id(tensor) for tensor, _ in values}
    for part in module.modules():
        if isinstance(part, BatchNorm2d) and id(part.running_mean) in loaded:
            part.settle()


def in_torch_order(value: Tensor) -> Tensor:
    """Turn a kernel of Keras, (..., in, out), to (out, in, ...)."""
    if value.ndim <= 2:
        return value
    return value.permute(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))


def in_keras_order(value: Tensor) -> Tensor:
    """Turn a kernel of PyTorch, (out, in, ...), to (..., in, out)."""
    return value.permute(*range(2, value.ndim), 1, 0) if value.ndim > 2 else value


def _slot(name: str, kind: str, layer: Any) -> Slot:
    parts = ("weight", "bias", "running_mean", "running_var") if kind == "norm" else ("weight", "bias")
    tensors = [(f"{name}.{part}", getattr(layer, part)) for part in parts if getattr(layer, part) is not None]
    return Slot(name, kind, tuple((own, tensor, tuple(in_keras_order(tensor).shape)) for own, tensor in tensors))
