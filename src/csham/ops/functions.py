"""The operators of :mod:`csham.ops.library` with their gradients.

A pooling reads ``x`` for its statistics, and a scaling multiplies ``x`` by what was made of them. Separately, each
would write a gradient the size of ``x``, and autograd would add them up. Here the scaling's backward pass computes
the small gradients only (of ``w``, ``s`` and the shortcut) and leaves a note for the pooling's, which then writes the
gradient of ``x`` in one go. The note travels as the gradients of the pooling's ``carry`` outputs, which ``scale``
takes and whose values are never read: ``carry_z`` brings the gradient of ``w s x``, ``carry_w`` and ``carry_s`` the
weights of the scaling, ``carry_ties`` how many channels share each position's maximum. So ``carry`` must go to one
scaling of the same ``x``.

In eager mode the functions run as ``autograd.Function``, which costs less a call; under torch.compile as operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csham.errors import UserError
from csham.ops.library import NAMESPACES

__all__ = ["Carry", "channel_pool", "hybrid_pool", "position_pool", "scale", "spatial_gate"]


class Carry(NamedTuple):
    """Tie from one pooling to one scaling of the same map; no data."""

    z: Tensor
    w: Tensor
    s: Tensor
    ties: Tensor


def channel_pool(kernels: str, x: Tensor, maximum: bool) -> tuple[Tensor, Tensor | None, Carry]:
    """Pool over the positions.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        maximum: True to find the maximum too.

    Returns:
        Mean and maximum (None if not wanted), (B, C), float32, and what :func:`scale` needs.
    """
    mean, maxima, *rest = _call("channel_pool", kernels, x, maximum)
    return mean, maxima if maximum else None, Carry(*rest)


def position_pool(
    kernels: str, x: Tensor, w: Tensor | None, neighbor_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Carry]:
    """Pool ``w ⊙ x`` over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        w: Channel weights, (B, C), float32; None for ones.
        neighbor_weight: 3x3 filter over the channels, (1, C, 3, 3), float32; None for no neighbour term.

    Returns:
        Mean and maximum, (B, 1, H, W), the neighbour term before its norm (or None), float32, and what :func:`scale`
        needs.
    """
    mean, maxima, neighbors, *rest = _call("position_pool", kernels, x, w, neighbor_weight)
    return mean, maxima, None if neighbor_weight is None else neighbors, Carry(*rest)


class Pooled(NamedTuple):
    """Channel weights, and the statistics over the channels: mean and maximum (B, 1, H, W) and the neighbour term."""

    w: Tensor
    mean: Tensor
    max: Tensor
    neighbors: Tensor | None
    carry: Carry


def hybrid_pool(
    kernels: str,
    x: Tensor,
    filters: tuple[Tensor, ...],
    relu: bool,
    positions: bool = False,
    weighted: bool = True,
    neighbor_weight: Tensor | None = None,
) -> Pooled:
    """Compute CSHAM's channel weights, and with ``positions`` pool ``w ⊙ x`` over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: Feature map, (B, C, H, W), contiguous or channels_last.
        filters: Weight and bias of the convolutions avg, max and fuse, float32.
        relu: True if ReLU follows each convolution.
        positions: True to pool over the channels.
        weighted: True to pool ``w ⊙ x``, not ``x``.
        neighbor_weight: As for :func:`position_pool`.
    """
    w, _, _, mean, maxima, neighbors, *rest = _call(
        "hybrid_pool", kernels, x, *filters, relu, positions, weighted, neighbor_weight
    )
    return Pooled(w, mean, maxima, None if neighbor_weight is None else neighbors, Carry(*rest))


def scale(
    kernels: str,
    x: Tensor,
    carry: Carry,
    w: Tensor | None = None,
    s: Tensor | None = None,
    *,
    position_w: Tensor | None = None,
    position_max: Tensor | None = None,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return ``w ⊙ s ⊙ x + shortcut``, and its ReLU if wanted.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        x: The map that was pooled.
        carry: Result of the pooling.
        w: Channel weights, (B, C), float32; None for ones.
        s: Spatial weights, (B, 1, H, W), float32; None for ones.
        position_w: The channel weights that the maximum over the channels was taken with.
        position_max: That maximum, whose ties the backward pass counts.
        shortcut: Added, (B, C, H, W), of the type and memory format of ``x``.
        relu: True if ReLU follows.
    """
    y: Tensor = _call("scale", kernels, x, w, s, shortcut, relu, position_w, position_max, *carry)
    return y


class Gate(NamedTuple):
    """Spatial weights, (B, 1, H, W), and mean and biased variance of what each norm normalised, (1,)."""

    s: Tensor
    norm_mean: Tensor
    norm_var: Tensor
    neighbor_mean: Tensor
    neighbor_var: Tensor


def spatial_gate(kernels: str, mean: Tensor, maximum: Tensor, neighbors: Tensor | None, *settings: Any) -> Gate:
    """Compute spatial weights from the statistics over the channels.

    Args:
        kernels: ``"cpu"`` or ``"triton"``.
        mean: (B, 1, H, W), float32.
        maximum: (B, 1, H, W), float32.
        neighbors: The neighbour term or None.
        settings: As ``spatial_gate`` of :mod:`csham.ops.library` takes them.
    """
    s, _, *statistics = _call("spatial_gate", kernels, mean, maximum, neighbors, *settings)
    return Gate(s, *statistics)


def _call(name: str, kernels: str, *args: Any) -> Any:
    namespace = f"csham_{kernels}"
    if torch.compiler.is_compiling():
        return _operator(namespace, name)(*args)
    if torch.is_grad_enabled():
        return _FUNCTIONS[name].apply(namespace, *args)
    # Past the dispatcher's autograd, which is Python and costs more than a small kernel.
    with torch._C._AutoDispatchBelowAutograd():
        return _operator(namespace, name)(*args)


def _operator(namespace: str, name: str) -> Any:
    return getattr(getattr(torch.ops, namespace), name).default


class _Differentiable:
    """Operator with its backward pass: it saves what that needs, and gives one gradient (or None) for each argument."""

    name: str

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise NotImplementedError


class _ChannelPool(_Differentiable):
    name = "channel_pool"

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, maximum = inputs
        ctx.save_for_backward(x, output[1] if maximum else None)

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, maxima = ctx.saved_tensors
        grad_mean, grad_max, grad_z, w, s, _ = grads
        if grad_mean is None:
            grad_mean = x.new_zeros(x.shape[:2], dtype=torch.float32)
        grad_max = None if maxima is None or grad_max is None else grad_max.contiguous()
        maxima = None if grad_max is None else maxima
        backward = _operator(ctx.namespace, "channel_pool_backward")
        return backward(_like(grad_z, x), x, w, s, grad_mean.contiguous(), grad_max, maxima), None


class _PositionPool(_Differentiable):
    name = "position_pool"

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, w, neighbor_weight = inputs
        ctx.save_for_backward(x, w, neighbor_weight, output[1])

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, position_w, neighbor_weight, maxima = ctx.saved_tensors
        grad_z, w, s, given = _positions(ctx, x, position_w, maxima, neighbor_weight, *grads)
        backward = _operator(ctx.namespace, "position_pool_backward")
        grad_x, grad_w, grad_neighbor_weight = backward(grad_z, x, w, s, position_w, *given)
        return grad_x, _or_none(grad_w, position_w), _or_none(grad_neighbor_weight, neighbor_weight)


class _HybridPool(_Differentiable):
    name = "hybrid_pool"

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, *filters = inputs[:7]
        ctx.relu, ctx.positions, ctx.weighted, neighbor_weight = inputs[7:]
        w, channel_mean, channel_max, _, maxima = output[:5]
        ctx.save_for_backward(x, *filters, w, channel_mean, channel_max, maxima, neighbor_weight)

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, *filters, channel_w, channel_mean, channel_max, maxima, neighbor_weight = ctx.saved_tensors
        grad_w, _, _, *rest = grads
        grad_z, w, s = _like(rest[3], x), rest[4], rest[5]
        given: tuple[Tensor | None, ...] = (None,) * 6
        if ctx.positions:
            position_w = channel_w if ctx.weighted else None
            grad_z, w, s, given = _positions(ctx, x, position_w, maxima, neighbor_weight, *rest)
        statistics = (channel_w, channel_mean, channel_max)
        backward = _operator(ctx.namespace, "hybrid_pool_backward")
        grad_x, grad_filters, grad_neighbor_weight = backward(
            grad_z, x, w, s, *filters, ctx.relu, ctx.weighted, *statistics, _contiguous(grad_w), *given
        )
        parts = grad_filters.split([f.numel() for f in filters])
        shaped = (part.view(f.shape) for part, f in zip(parts, filters, strict=True))
        return grad_x, *shaped, None, None, None, _or_none(grad_neighbor_weight, neighbor_weight)


class _Scale(_Differentiable):
    name = "scale"

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, w, s, shortcut, relu, position_w, position_max = inputs[:7]
        ctx.shortcut = shortcut is not None
        ctx.save_for_backward(x, w, s, position_w, position_max, output if relu else None)

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, w, s, position_w, position_max, y = ctx.saved_tensors
        grad_y = _like(grads[0], x)
        backward = _operator(ctx.namespace, "scale_backward")
        grad_z, grad_w, grad_s, ties = backward(grad_y, x, w, s, position_w, position_max, y)
        if y is None:
            grad_z = grad_y
        carried = (grad_z, w, s, _or_none(ties, position_max))
        small = (_or_none(grad_w, w), _or_none(grad_s, s), grad_z if ctx.shortcut else None)
        return None, *small, None, None, None, *carried


class _SpatialGate(_Differentiable):
    name = "spatial_gate"

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        statistics, norm, neighbor_norm, ctx.settings = inputs[:4], inputs[4:8], inputs[8:12], inputs[12:]
        s, position, *batch = output
        training, neighbor_training = ctx.settings[:2]
        used = batch[:2] if training else norm[2:]
        if statistics[2] is None:  # the norm that is not used may be the other one, whose statistics move on
            neighbor_norm = (None,) * 4
        neighbor_used = batch[2:] if neighbor_training else neighbor_norm[2:]
        ctx.save_for_backward(s, position, *statistics, *norm[:2], *used, *neighbor_norm[:2], *neighbor_used)

    @staticmethod
    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        neighbors, norms = saved[4], (saved[6], saved[7], saved[10], saved[11])
        backward = _operator(ctx.namespace, "spatial_gate_backward")
        if neighbors is None:
            norms = (*norms[:2], None, None)
        *given, grad_norms = backward(grads[0].contiguous(), *saved, *ctx.settings)
        given[2] = _or_none(given[2], neighbors)
        weight, bias, neighbor_weight, neighbor_bias = (
            None if norm is None else grad.view(norm.shape)
            for grad, norm in zip(grad_norms.split(1), norms, strict=True)
        )
        return *given, weight, bias, None, None, neighbor_weight, neighbor_bias, *(None,) * 7


def _positions(
    ctx: Any,
    x: Tensor,
    position_w: Tensor | None,
    maxima: Tensor,
    neighbor_weight: Tensor | None,
    grad_mean: Tensor | None,
    grad_max: Tensor | None,
    grad_neighbors: Tensor | None,
    grad_z: Tensor | None,
    w: Tensor | None,
    s: Tensor | None,
    ties: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, tuple[Tensor | None, ...]]:
    """Bring what came back to the statistics over the channels into the form that the backward operators take."""
    if ties is None:  # the scaled map was not used, only its statistics
        zero = torch.zeros_like(x)
        ties = _operator(ctx.namespace, "scale_backward")(zero, x, None, None, position_w, maxima, None)[3]
    if neighbor_weight is None or grad_neighbors is None:
        grad_neighbors = neighbor_weight = None
    given = (_or_zeros(grad_mean, maxima), _or_zeros(grad_max, maxima), maxima, ties)
    return _like(grad_z, x), w, s, (*given, _contiguous(grad_neighbors), neighbor_weight)


def _like(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """Give a gradient the memory format of its map."""
    if grad is None or x.is_contiguous():
        return _contiguous(grad)
    return grad.contiguous(memory_format=torch.channels_last)


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad.contiguous()


def _or_none(grad: Tensor, wanted: Tensor | None) -> Tensor | None:
    # Operators return an empty array for what does not exist.
    return None if wanted is None or grad.numel() == 0 != wanted.numel() else grad


class _NotAgain(torch.autograd.Function):
    """Gradients as they are, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, *grads: Any) -> Any:
        return grads

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UserError(
            "the kernels' gradients cannot be differentiated again. Let the reference run, which can: "
            "CSHAM_KERNELS=reference in the environment, or csham.ops.use_kernels('reference') around the forward pass."
        )


def _once(gradients: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Make differentiating the gradients an error, because it cannot be done and they would pass for constants."""

    def compute(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return gradients(ctx, *grads)
        with torch.no_grad():
            found = gradients(ctx, *grads)
        return tuple(_NotAgain.apply(*(None if grad is None else grad.detach().requires_grad_() for grad in found)))

    return compute


def _function(operator: type[_Differentiable]) -> type[torch.autograd.Function]:
    """Make the ``autograd.Function`` of an operator, whose first argument is the namespace."""

    gradients = _once(operator.gradients)

    class Function(torch.autograd.Function):
        # Not in two parts, with setup_context: torch would then look its signature up at every call, for 50 us.
        @staticmethod
        def forward(ctx: Any, namespace: str, *args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = _operator(namespace, operator.name)(*args)
            _save(operator, namespace, ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *gradients(ctx, *grads)

    Function.__name__ = Function.__qualname__ = f"csham_{operator.name}"
    return Function


def _save(operator: type[_Differentiable], namespace: str, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.namespace = namespace
    ctx.set_materialize_grads(False)
    operator.save(ctx, inputs, output)


_OPERATORS = (_ChannelPool, _PositionPool, _HybridPool, _Scale, _SpatialGate)
_FUNCTIONS = {operator.name: _function(operator) for operator in _OPERATORS}


def _register() -> None:
    for namespace in NAMESPACES:
        for operator in _OPERATORS:
            torch.library.register_autograd(
                f"{namespace}::{operator.name}",
                _once(operator.gradients),
                setup_context=partial(_save, operator, namespace),
            )


_register()
