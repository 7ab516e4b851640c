"""See the weights that an attention uses, while it uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any

from torch import Tensor, nn

from csham.errors import UserError
from csham.layers.attention import has_weights, parts_of

__all__ = ["record_weights", "tells_weights"]

Note = Callable[[str, Tensor], None]


def record_weights(layer: nn.Module, note: Note) -> Callable[[], None]:
    """Have every forward pass of an attention tell the weights that it multiplies its map with.

    Multiplied into the layer's input, all that one pass notes gives its output (of ``shuffle``, before the channels
    change places). Attentions that add instead of scaling, such as ``a2``, note nothing, and nor do those whose method
    ``weights`` returns anything but (B, C), (B, C, 1, 1) or an array of four axes.

    Args:
        layer: An attention of :func:`csham.create_attention`, one of its parts ``channel`` and ``spatial``, or any
            module with a method ``weights`` that its forward pass calls. One whose ``gate_kind`` is None has none.
        note: Called as ``note(kind, weights)`` with ``("channel", (B, C))``, ``("spatial", (B, 1, H, W))`` or
            ``("full", (B, C, H, W))``, in the order of use. The weights are those of the graph: detach what you keep.

    Returns:
        A function that ends the recording; other recordings of the layer go on. Calling it again does nothing.

    Raises:
        UserError: The layer is none of these.

    Examples:
        >>> stop = record_weights(layer, lambda kind, weights: found.append((kind, weights.detach())))
        >>> y = layer(x)
        >>> stop()
    """
    if has_weights(layer):
        return _observe(layer, note)
    if hasattr(layer, "gate_kind"):
        return _hook(layer, note) if layer.gate_kind else lambda: None
    parts = parts_of(layer)
    if parts is not None:
        return partial(_call_all, [_observe(part, note) for part in parts])
    raise UserError(
        f"record_weights: {type(layer).__name__} is no attention with weights to look at. Give it a layer of "
        "csham.create_attention, or a module with a method weights(x)."
    )


def tells_weights(layer: nn.Module) -> bool:
    """Return True if :func:`record_weights` takes a layer."""
    return has_weights(layer) or hasattr(layer, "gate_kind") or parts_of(layer) is not None


class _Observed:
    """Stand-in for the method ``weights`` of one layer while they are recorded.

    An object, not a closure: a deep copy of the layer then calls its own weights, not the original's.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.notes: list[Note] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        weights = type(self.layer).weights(self.layer, *args, **kwargs)
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor) and isinstance(weights, Tensor) and weights.dim() in (2, 4):
            self._tell(x, weights)
        return weights

    def _tell(self, x: Tensor, weights: Tensor) -> None:
        # Channel weights as a convolution makes them, (B, C, 1, 1).
        of_channels = weights.shape[1:] == (x.shape[1], 1, 1) and x.shape[2:] != (1, 1)
        told = weights.flatten(1) if of_channels else weights
        for note in tuple(self.notes):
            note(_kind(told), told)


def _observe(layer: nn.Module, note: Note) -> Callable[[], None]:
    observed = vars(layer).setdefault("weights", _Observed(layer))
    # Wrapped, so that one note given twice is two recordings, each with its own end.
    this = partial(note)
    observed.notes.append(this)

    def stop() -> None:
        observed.notes[:] = [other for other in observed.notes if other is not this]
        if not observed.notes and vars(layer).get("weights") is observed:
            del layer.weights

    return stop


def _call_all(functions: Iterable[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _kind(weights: Tensor) -> str:
    if weights.dim() == 2:
        return "channel"
    return "spatial" if weights.shape[1] == 1 else "full"


def _hook(layer: Any, note: Note) -> Callable[[], None]:
    """Multiply the outputs of timm's module ``gate`` up during a pass of the layer."""
    factors: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(partial(_begin, factors)),
        layer.gate.register_forward_hook(partial(_collect, factors)),
        layer.register_forward_hook(partial(_tell, factors, note)),
    ]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def _begin(factors: list[Tensor], layer: nn.Module, args: tuple[Any, ...]) -> None:
    factors.clear()


def _collect(factors: list[Tensor], gate: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    factors.append(output)


def _tell(factors: list[Tensor], note: Note, layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
    if factors:
        weights = prod(factors[1:], start=factors[0])
        if getattr(layer, "has_skip", False):
            weights = 1 + weights
        shape = args[0].shape
        note(layer.gate_kind, weights.reshape(shape[:2]) if layer.gate_kind == "channel" else weights.expand(shape))
    factors.clear()
