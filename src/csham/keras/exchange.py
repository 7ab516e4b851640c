"""Weights of attention from Keras layers to PyTorch's, and from these to Keras'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csham import layers as torch_layers
from csham.errors import UserError
from csham.keras._keras import keras
from csham.keras.layers import ChannelAttention, Gated, SpatialAttention
from csham.keras.slots import CHANNEL_PARTS, SPATIAL_PARTS, in_keras_order, in_torch_order, list_slots, store

__all__ = ["copy_weights"]


def copy_weights(source: Any, target: Any) -> dict[str, str]:
    """Copy the weights of attention from Keras to PyTorch or from PyTorch to Keras, in place; all of them or none.

    Source and target are layers, or networks with several: the first attention of one goes to the first of the other.
    Gates and the statistics of batch norms are copied too, weights of the backbone are not. Kernels are transposed,
    (k, in, out) to (out, in, k) and (H, W, in, out) to (out, in, H, W).

    Args:
        source: A Keras layer or model with :class:`csham.keras.ChannelAttention`, :class:`csham.keras.SpatialAttention`
            or :class:`csham.keras.CSHAM`, or a PyTorch module with their namesakes of :mod:`csham`.
        target: A PyTorch module where the source is Keras', a Keras layer or model where it is PyTorch's.

    Returns:
        For each parameter and buffer of PyTorch's, the path of the variable of Keras'.

    Raises:
        UserError: Not one of each; a Keras layer that was not built; steps that differ in number, kind, order, shape or
            activation.

    Examples:
        >>> layer = csham.keras.CSHAM()
        >>> layer.build((None, 56, 56, 64))
        >>> module = csham.CSHAM(64)
        >>> copied = csham.keras.copy_weights(layer, module)
        >>> copied = csham.keras.copy_weights(module, layer)
    """
    # On its PyTorch backend a layer of Keras is a module too.
    is_keras = [isinstance(one, keras.layers.Layer) for one in (source, target)]
    if sorted(is_keras) != [False, True] or not isinstance((source, target)[is_keras.index(False)], nn.Module):
        raise UserError(
            "copy_weights: one has to be a layer or model of Keras, the other a module of PyTorch, got "
            f"{type(source).__name__} and {type(target).__name__}."
        )
    layer, module = (source, target) if is_keras[0] else (target, source)
    pairs = _pairs(layer, module)
    if is_keras[0]:
        store(module, [(tensor, _from_keras(variable).reshape(tensor.shape)) for _, tensor, variable in pairs])
    else:
        for _, tensor, variable in pairs:
            variable.assign(in_keras_order(tensor.detach()).cpu().double().numpy().reshape(variable.shape))
    return {name: variable.path for name, _, variable in pairs}


def _from_keras(variable: Any) -> Tensor:
    return in_torch_order(torch.from_numpy(np.asarray(keras.ops.convert_to_numpy(variable)).astype(np.float64)))


def _pairs(layer: Any, module: nn.Module) -> list[tuple[str, Tensor, Any]]:
    """Pair PyTorch's tensors, with their names, and Keras' variables."""
    ours, theirs = list_slots(module), list(_attentions(layer, {}))
    steps = [
        part
        for part in module.modules()
        if isinstance(part, torch_layers.ChannelAttention | torch_layers.SpatialAttention)
    ]
    described = (
        [_described(part) for part in theirs if not isinstance(part, Gated)],
        [_described(part) for part in steps],
    )
    for number, (one, other) in enumerate(zip_longest(*described), 1):
        if one != other:
            raise UserError(
                f"copy_weights: attention step {number} is {one or 'not there'} in Keras and {other or 'not there'} in "
                f"PyTorch; {len(described[0])} steps there, {len(described[1])} here."
            )
    gates = [len(theirs) - len(steps), sum(slot.kind == "gate" for slot in ours)]
    if gates[0] != gates[1]:
        raise UserError(f"copy_weights: {gates[0]} gates in Keras, {gates[1]} in PyTorch.")
    # Both have a gate before what it gates.
    tensors = [entry for slot in ours for entry in slot.tensors]
    pairs = [(*entry, variable) for entry, variable in zip(tensors, _variables(theirs), strict=True)]
    for name, _, shape, variable in pairs:
        if tuple(variable.shape) != shape:
            raise UserError(
                f"copy_weights: {variable.path} has the shape {tuple(variable.shape)} in Keras, {name} takes {shape}."
            )
    return [(name, tensor, variable) for name, tensor, _, variable in pairs]


def _described(step: Any) -> str:
    """Say what kind of step it is, of Keras or PyTorch, and its activation."""
    act = step.act if isinstance(step, keras.layers.Layer) else ("relu" if isinstance(step.act, nn.ReLU) else None)
    return f"{type(step).__name__} with act={act!r}"


def _attentions(layer: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Go through the steps and gates of a layer, in its order, each once."""
    if id(layer) in seen:
        return
    seen[id(layer)] = layer
    if isinstance(layer, ChannelAttention | SpatialAttention | Gated):
        if not layer.built:
            raise UserError(f"copy_weights: {layer.name!r} has no weights yet. Call it, or its build(), before.")
        yield layer
    for part in layer.layers if isinstance(layer, keras.Model) else layer._flatten_layers(False, False):
        yield from _attentions(part, seen)


def _variables(parts: Iterable[Any]) -> Iterator[Any]:
    """Go through the variables of steps and gates in the order of :func:`list_slots`."""
    for part in parts:
        if isinstance(part, Gated):
            yield part.gate
            continue
        for name in CHANNEL_PARTS if isinstance(part, ChannelAttention) else SPATIAL_PARTS:
            inner = getattr(part, name)
            for word in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"):
                variable = getattr(inner, word, None)
                if variable is not None:
                    yield variable
