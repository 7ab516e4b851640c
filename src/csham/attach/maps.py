"""Record what every attached attention weighs, while the network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from csham.attach.install import attached_modules
from csham.attach.installed.attached import Attached, attends
from csham.errors import UserError
from csham.layers.recording import record_weights, tells_weights
from csham.probing import eagerly, uncompiled

__all__ = ["attention_maps"]


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Record the channel and spatial weights at every attachment point of a network.

    While the ``with`` block lasts, each forward pass replaces what the one before it left. A compiled network runs
    without its compiled code meanwhile.

    Args:
        model: A network that :func:`csham.attach` changed; it may be compiled or wrapped in DDP.

    Yields:
        For the name of each point that has run: ``"channel"``, (B, C), and ``"spatial"``, (B, 1, H, W), as far as the
        point has them, and ``"full"``, (B, C, H, W), for attentions that weigh each value by itself. All detached, on
        the network's device. A point that applies another's channel weights shows those. Points whose attention weighs
        nothing, such as double attention, or does not tell its weights are left out. Where branches that were attached
        to one by one have points of the same name, names are those of the modules in ``model``.

    Raises:
        UserError: No attention is attached.

    Examples:
        >>> with csham.attention_maps(model) as maps:
        ...     logits = model(images)
        >>> maps["layer4.1.bn2"]["spatial"].shape
    """
    points = attached_modules(model)
    if not points:
        raise UserError(f"attention_maps: {type(model).__name__} has no attention attached. Use csham.attach first.")
    maps: dict[str, dict[str, Tensor]] = {}
    names = _names(model, points)
    undo = [_record(point, names[point], maps) for point in points]
    try:
        with eagerly():
            yield maps
    finally:
        for stop in undo:
            stop()


def _names(model: nn.Module, points: Sequence[Attached]) -> dict[nn.Module, str]:
    """Name points as attach did; if two got one name, as in branches that it was called for in turn, by their paths."""
    names: dict[nn.Module, str] = {point: point.name for point in points}
    if len(set(names.values())) == len(points):
        return names
    hosts = [
        (path, host, hook) for path, host in uncompiled(model).named_modules() for hook in host._forward_hooks.values()
    ]
    return names | {host.get_submodule(hook.args[0]): path for path, host, hook in hosts if attends(hook)}


def _record(point: Attached, name: str, maps: dict[str, dict[str, Tensor]]) -> Callable[[], None]:
    def note(kind: str, weights: Tensor) -> None:
        maps.setdefault(name, {})[kind] = weights.detach()

    attention: Any = point.attention
    stop = record_weights(attention, note) if tells_weights(attention) else lambda: None
    before = point.on_pass, point.on_borrowed
    point.on_pass, point.on_borrowed = partial(maps.pop, name, None), partial(note, "channel")

    def undo() -> None:
        stop()
        point.on_pass, point.on_borrowed = before

    return undo
