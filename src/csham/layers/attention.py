"""Attentions as :func:`csham.attach` sees them: what one may offer, and what is made of it.

Any module from (B, C, H, W) to the same is an attention, and can be attached. What else it offers is used:

- A method ``weights``, called by ``forward``, whose result multiplies the map: :func:`csham.attention_maps` shows it.
  Such an attention begins as a :class:`Gate`.
- Parts ``channel`` and ``spatial`` with ``weights`` of (B, C) and (B, 1, H, W): every strategy can connect them
  otherwise than ``forward`` does, place either alone, and lend the weights of the first.
- ``gate_kind`` instead of ``weights``: ``"channel"`` or ``"full"`` where the outputs of a module ``gate``, multiplied,
  are the weights, as in timm's; None where there are none, because it adds.
- A method ``open_gates`` without arguments, which sets what the weights start from so that they start near 1: what
  ``csham.attach(..., open_gates=True)`` calls, and refuses an attention without.
- A base class :class:`Fused`, :class:`ChannelStep`, :class:`SpatialStep` or :class:`TwoSteps`: it computes in one call
  what :func:`apply` and :func:`apply_and_lend` otherwise put together from those above. A ``forward`` or ``weights``
  that a subclass puts over such a class's is called, and nothing is computed past it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn

from csham import ops
from csham.layers.checks import check_channels, check_input
from csham.layers.opaque import Opaque, as_written
from csham.ops.calls import has_hooks, is_bare

__all__ = [
    "ChannelStep",
    "Fused",
    "Gate",
    "SpatialStep",
    "TwoSteps",
    "apply",
    "apply_and_lend",
    "connect",
    "has_weights",
    "is_plain",
    "parts_of",
]

Kind = TypeVar("Kind", bound="Fused")


class Gate(Opaque, nn.Module):
    """Base of attentions that scale a map: ``y = weights(x) ⊙ x``.

    A subclass computes :meth:`weights`; :meth:`forward` calls it through the instance, so that
    :func:`csham.layers.record_weights` sees what was used.

    Args:
        channels: Channels of the feature map.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A number of channels or an input that cannot work; a ``ValueError``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_channels(type(self).__name__, channels)
        self.channels = channels

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``: (B, C), (B, 1, H, W) or (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))

    def extra_repr(self) -> str:
        """Name the setting that the children do not show."""
        return f"channels={self.channels}"

    def _check(self, x: Tensor) -> None:
        check_input(type(self).__name__, x, self.channels)


class Fused:
    """Base of attentions that can end a residual block in the same call; put before a module's class."""

    def attend(self, x: Tensor, shortcut: Tensor | None = None, *, source: ops.Source | None = None) -> Tensor:
        """Attend to ``x``, (B, C, H, W).

        Args:
            x: (B, C, H, W).
            shortcut: If given, a map like ``x``, added to the result; ReLU follows.
            source: What ``x`` was made of by a norm, which kernels can read instead of it.
        """
        raise NotImplementedError


class _Step(Fused):
    """Base of parts that compute their weights and scale by them, in one call where nothing asks for the weights."""

    def weighs_at_once(self) -> bool:
        """Return True if ``_scale`` computes what ``weights`` does, and nobody records these."""
        return not _is_recorded(self) and _agrees(type(self), "weights", "_scale")


class ChannelStep(_Step):
    """Base of channel parts that scale with the weights that they also return, to be lent."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the channel weights of ``x``, (B, C), without applying them."""
        raise NotImplementedError

    def attend(self, x: Tensor, shortcut: Tensor | None = None, *, source: ops.Source | None = None) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W); with a shortcut, a map like ``x``, add it, and ReLU follows."""
        return self.attend_and_lend(x, shortcut, source=source)[0]

    def attend_and_lend(
        self, x: Tensor, shortcut: Tensor | None = None, *, source: ops.Source | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scale the channels of ``x`` and return the weights too, to be lent to other layers.

        Args:
            x: (B, C, H, W).
            shortcut: If given, a map like ``x``, and the result is ``relu(w ⊙ x + shortcut)``.
            source: As for :meth:`Fused.attend`.

        Returns:
            The map, (B, C, H, W), and the channel weights, (B, C).
        """
        if not self.weighs_at_once():
            weights = self.weights(x)
            return ops.finish(ops.scale(x, weights), shortcut), weights
        return self._scale(x, shortcut, source)

    def _scale(self, x: Tensor, shortcut: Tensor | None, source: ops.Source | None) -> tuple[Tensor, Tensor]:
        """Return what :meth:`attend_and_lend` does, in one call."""
        raise NotImplementedError


class SpatialStep(_Step):
    """Base of spatial parts that apply borrowed channel weights in the same call."""

    def weights(self, x: Tensor) -> Tensor:
        """Return the spatial weights of ``x``, (B, 1, H, W), without applying them."""
        raise NotImplementedError

    def attend(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        channel_weights: Tensor | None = None,
        *,
        source: ops.Source | None = None,
    ) -> Tensor:
        """Scale the positions of ``w ⊙ x``, with channel weights ``w`` borrowed from another layer.

        Args:
            x: (B, C, H, W).
            shortcut: If given, a map like ``x``, and the result is ``relu(s(w ⊙ x) ⊙ w ⊙ x + shortcut)``.
            channel_weights: ``w``, (B, C); None for ones.
            source: As for :meth:`Fused.attend`.
        """
        if not self.weighs_at_once():
            if channel_weights is not None:
                x = ops.scale(x, channel_weights)
            return ops.finish(ops.scale(x, self.weights(x)), shortcut)
        return self._scale(x, shortcut, channel_weights, source)

    def _scale(
        self, x: Tensor, shortcut: Tensor | None, channel_weights: Tensor | None, source: ops.Source | None
    ) -> Tensor:
        """Return what :meth:`attend` does, in one call."""
        raise NotImplementedError


class TwoSteps(Fused):
    """Base of attentions of two parts that know how to connect them.

    Attributes:
        channel: Part whose ``weights`` are (B, C).
        spatial: Part whose ``weights`` are (B, 1, H, W).
    """

    channel: Any
    spatial: Any

    def attend(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        connection: str = "sequential",
        *,
        source: ops.Source | None = None,
    ) -> Tensor:
        """Apply both steps to ``x``, (B, C, H, W).

        Args:
            x: (B, C, H, W).
            shortcut: If given, a map like ``x``, added to the result; ReLU follows.
            connection: ``"sequential"``, ``"reversed"``, ``"parallel"`` or ``"reapply"``, as in
                :func:`csham.ops.hybrid_attention`.
            source: As for :meth:`Fused.attend`.
        """
        return ops.finish(connect(x, self.channel, self.spatial, connection), shortcut)


def apply(
    layer: nn.Module,
    x: Tensor,
    shortcut: Tensor | None = None,
    *,
    channel_weights: Tensor | None = None,
    connection: str | None = None,
    source: ops.Source | None = None,
) -> Tensor:
    """Attend to ``x``, in one call where the layer can.

    Args:
        layer: Any attention.
        x: (B, C, H, W).
        shortcut: If given, a map like ``x``, added to the result; ReLU follows.
        channel_weights: Weights, (B, C), that scale the map first.
        connection: Connection of the layer's two parts, as for :func:`connect`; None for the layer's own.
        source: As for :meth:`Fused.attend`.
    """
    if channel_weights is not None:
        if _attends(layer, SpatialStep):
            return layer.attend(x, shortcut, channel_weights, source=source)
        x, source = ops.scale(x, channel_weights), None
    if connection is not None:
        if _attends(layer, TwoSteps):
            return layer.attend(x, shortcut, connection, source=source)
        return ops.finish(connect(x, layer.channel, layer.spatial, connection), shortcut)
    if _attends(layer, Fused):
        return layer.attend(x, shortcut, source=source)
    return ops.finish(layer(x), shortcut)


def apply_and_lend(
    layer: Any, x: Tensor, shortcut: Tensor | None = None, source: ops.Source | None = None
) -> tuple[Tensor, Tensor]:
    """Scale the channels of ``x`` by a channel part, and return its weights too; see :class:`ChannelStep`.

    One of csham's with hooks or a ``forward`` put over it is called. Of any other the weights alone are asked for, so
    that they are computed once.
    """
    if _attends(layer, ChannelStep):
        return layer.attend_and_lend(x, shortcut, source=source)
    kind = type(layer)
    if issubclass(kind, ChannelStep) or (issubclass(kind, Gate) and _has_another_forward(kind)):
        # Those lent are not told to who records: the call has told what it used.
        return ops.finish(layer(x), shortcut), kind.weights(layer, x)
    weights = layer.weights(x)
    lent = weights.flatten(1) if weights.shape[2:] == (1, 1) else weights
    return ops.finish(ops.scale(x, weights), shortcut), lent


def connect(x: Tensor, channel: Any, spatial: Any, connection: str) -> Tensor:
    """Apply two parts of an attention to ``x``, (B, C, H, W), one by one.

    Args:
        x: (B, C, H, W).
        channel: A layer whose ``weights(x)`` are (B, C).
        spatial: A layer whose ``weights(x)`` are (B, 1, H, W).
        connection: As for :meth:`TwoSteps.attend`.
    """
    if connection == "reversed":
        return channel(spatial(x))
    if connection == "parallel":
        return ops.scale(ops.scale(x, channel.weights(x)), spatial.weights(x))
    if connection == "reapply":
        weights = channel.weights(x)
        return ops.scale(spatial(ops.scale(x, weights)), weights)
    return spatial(channel(x))


def parts_of(layer: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return the channel and the spatial part of an attention, or None where it has no two with weights."""
    parts = [part for name, part in layer.named_children() if name in ("channel", "spatial") and has_weights(part)]
    return (layer.get_submodule("channel"), layer.get_submodule("spatial")) if len(parts) == 2 else None


def has_weights(layer: nn.Module) -> bool:
    """Return True if an attention tells its weights by a method of that name."""
    return callable(getattr(type(layer), "weights", None))  # not a module of that name, which could be called too


def is_plain(part: Any, *kinds: type[nn.Module]) -> bool:
    """Return True if nothing but the mathematics of one of ``kinds`` happens where ``part`` is called."""
    return is_bare(part, *kinds) and not _is_recorded(part)


def _is_recorded(layer: Any) -> bool:
    return "weights" in layer.__dict__


def _attends(layer: Any, kind: type[Kind]) -> TypeGuard[Kind]:
    """Return True if a layer does by ``attend`` what it does when it is called, and nobody watches its calls."""
    agrees = isinstance(layer, kind) and _agrees(type(layer), "forward", "attend", "attend_and_lend", "_scale")
    return agrees and not has_hooks(layer)


def _agrees(kind: type, method: str, *at_once: str) -> bool:
    """Return True if a class has the ``method`` that stood beside its methods ``at_once``, which do the same."""
    return _agreement(kind, method, at_once)


def _has_another_forward(kind: type[Gate]) -> bool:
    return as_written(kind.forward) is not as_written(Gate.forward)


# As in csham.ops.choice: torch.compile need not read the classes.
_agrees._dynamo_marked_constant = True  # type: ignore[attr-defined]
_has_another_forward._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _agreement(kind: type, method: str, at_once: tuple[str, ...]) -> bool:
    owner = next(base for base in kind.__mro__ if any(name in vars(base) for name in at_once))
    ours, beside = (as_written(getattr(one, method, None)) for one in (kind, owner))
    return ours is beside
