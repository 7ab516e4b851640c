"""The module that sits at an attachment point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.module import _global_forward_hooks

from csham import ops
from csham.attach.graph.trace import CONTAINERS
from csham.attach.installed.norm_source import norm_source
from csham.attach.installed.recomputed_norm import norm_recomputed
from csham.attach.installed.transfer import ChannelWeightTransfer
from csham.errors import UserError
from csham.layers.attention import apply, apply_and_lend
from csham.layers.opaque import Opaque
from csham.ops.calls import has_hooks

__all__ = ["Attached", "attend", "attends", "hang", "places_below", "take_away"]

_CHILD = "attached"

# Where the parts are connected otherwise than by the attention's authors.
_CONNECTED = ("reversed", "parallel", "reapply")


class Attached(Opaque, nn.Module):
    """An attention at one point of a network, with its connection, its gate and its part in the transfer of weights.

    Without a gate ``y = attention(x)``; with one ``y = (1 - θ) attention(x) + θ x``, ``θ`` starting at 1, so that the
    network computes what it did before until training lets attention in. A point that lends hands its channel weights
    on; one that borrows applies those first: ``y = attention(w ⊙ x)``.

    A state_dict that has no entry at all for this module, such as the plain network's, is accepted and leaves it as it
    is; one that has only some of the entries is refused by ``strict=True`` as usual.
    """

    gate: nn.Parameter | None
    # Of the class too, for networks pickled before they were there.
    recomputes_norm = False
    # True if the attention writes into the map that it is given, which may be used elsewhere: it gets a copy.
    copies_map = False
    # What attention_maps() does as a pass begins; no hook, which would end the fusion of the block.
    on_pass: Callable[[], object] | None = None

    def __init__(
        self,
        name: str,
        attention: nn.Module,
        part: str = "whole",
        *,
        gated: bool = False,
        lends: ChannelWeightTransfer | None = None,
        borrows: ChannelWeightTransfer | None = None,
        lender: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.part = part
        self.attention = attention
        self.lends = lends
        self.borrows = borrows
        self.lender = lender
        # What attention_maps() wants to be told of channel weights that come from another point.
        self.on_borrowed: Callable[[Tensor], None] | None = None
        self.on_pass = None  # there from the start: torch's compiler asks
        # Of one axis, because FSDP takes no parameter without any.
        self.gate = nn.Parameter(torch.ones(1, device=device, dtype=dtype)) if gated else None

    def forward(
        self,
        x: Tensor,
        shortcut: Tensor | None = None,
        *,
        inplace: bool = False,
        made_by: tuple[nn.Module, Any] | None = None,
        weights: Any = None,
    ) -> Any:
        """Attend to ``x``, (B, C, H, W); with a shortcut return ``relu(y + shortcut)``, the end of a residual block.

        Args:
            x: The feature map.
            shortcut: Map that a block adds to it; as in the block itself, of any shape and type that can be added.
            inplace: True if the block writes the sum into ``y``, whose type it then has, whatever the shortcut's is.
            made_by: The module that put ``x`` out, and what it was given; in compiled code kernels read a norm's input
                instead of its output.
            weights: In graphs of torch.fx, which have no stages: the channel weights that are lent to this point, or
                True for a point that lends, and the result is ``(y, weights)``.
        """
        if self.on_pass is not None:
            self.on_pass()
        if weights is not None:
            return self._attend_alone(x, weights)
        # A gate mixes the norm's output in, which is then there.
        source = None if made_by is None or self.gate is not None else norm_source(*made_by, x)
        if self.recomputes_norm:
            with norm_recomputed(x):
                return self._end(x, shortcut, inplace, source)
        return self._end(x, shortcut, inplace, source)

    def _end(self, x: Tensor, shortcut: Tensor | None, inplace: bool, source: ops.Source | None) -> Tensor:
        # The kernels add a shortcut that is like the map; torch adds any other.
        fused = shortcut is not None and (shortcut.shape, shortcut.dtype) == (x.shape, x.dtype) and self.gate is None
        y = self._attend(x, shortcut if fused else None, source)
        if self.gate is not None:
            gate = self.gate.to(x.dtype)
            y = gate * x + (1 - gate) * y  # in this order: the sum is laid out as its first operand
        return y if fused or shortcut is None else self._finish(y, shortcut, inplace)

    def as_node(self, x: Proxy, *args: Any, **kwargs: Any) -> Proxy:
        """Write attention into the graph that torch.fx is tracing, where the weights that are lent are values too."""
        if args or kwargs:  # a graph is traced again
            return super().as_node(x, *args, **kwargs)
        if self.borrows is not None:
            return super().as_node(x, weights=self.borrows.traced(x.tracer, self.name, str(self.lender)))
        if self.lends is None:
            return super().as_node(x)
        node: Any = super().as_node(x, weights=True)
        self.lends.trace(x.tracer, self.name, node[1])
        return node[0]

    def _attend_alone(self, x: Tensor, weights: Any) -> Any:
        if self.lends is not None:
            return self.lends.alone(partial(self.forward, x))
        assert self.borrows is not None
        return self.borrows.alone(partial(self.forward, x), (str(self.lender), weights))[0]

    def _finish(self, y: Tensor, shortcut: Tensor, inplace: bool) -> Tensor:
        total = y.add_(shortcut) if inplace else y + shortcut
        return total.relu_()

    def _attend(self, x: Tensor, shortcut: Tensor | None, source: ops.Source | None) -> Tensor:
        if self.copies_map:
            x = x.clone()
        if self.lends is not None:
            y, weights = apply_and_lend(self.attention, x, shortcut, source)
            self.lends.lend(self.name, weights)
            return y
        connection = self.part if self.part in _CONNECTED else None
        borrowed = self._borrow()
        return apply(self.attention, x, shortcut, channel_weights=borrowed, connection=connection, source=source)

    def _borrow(self) -> Tensor | None:
        if self.borrows is None:
            return None
        weights = self.borrows.borrow(self.name, str(self.lender))
        if self.on_borrowed is not None:
            self.on_borrowed(weights)
        return weights

    def extra_repr(self) -> str:
        """Say what the children do not show."""
        roles = [self.part] if self.part in _CONNECTED else []
        roles += ["gated"] if self.gate is not None else []
        roles += ["lends its channel weights"] if self.lends is not None else []
        roles += [f"applies the channel weights of {self.lender} first"] if self.borrows is not None else []
        return ", ".join(roles)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + key: value for key, value in self.state_dict().items()})
        gate = state_dict.get(f"{prefix}gate")
        if gate is not None and gate.ndim == 0:  # of before it had an axis
            state_dict[f"{prefix}gate"] = gate[None]
        super()._load_from_state_dict(state_dict, prefix, *args)


def hang(attached: nn.Module, host: nn.Module, path: str, levels: int = 0) -> None:
    """Let a host attend to what it puts out, before the hooks of others, which are to see what comes out.

    Args:
        attached: The attention.
        host: The module whose output is attended to.
        path: Path below the host at which the attention lives, or is to live.
        levels: Number of the modules around the host that put out what it does.
    """
    parent, _, name = path.rpartition(".")
    home = host.get_submodule(parent)
    if home._modules.get(name) is not attached:
        home.add_module(name, attached)
    host.register_forward_hook(partial(attend, path, levels=levels), prepend=True)


def attend(path: str, host: nn.Module, args: tuple[Any, ...], output: Tensor, *, levels: int = 0) -> Tensor:
    """Attend to what a host puts out; with the path below it where the attention lives, this is the host's hook."""
    # The module is looked up, not bound, so that a deep copy of the network uses its own.
    attached = host.get_submodule(path)
    if torch.compiler.is_compiling() and len(args) == 1 and _sees_all(attached, host):
        return attached(output, made_by=(host, *args))
    return attached(output)


def _sees_all(attached: nn.Module, host: nn.Module) -> bool:
    """Return True if what a host puts out comes to its attention as it is, and nobody stands between the two."""
    direct = isinstance(attached, Attached) and not has_hooks(attached)
    return direct and not _global_forward_hooks and attends(next(iter(host._forward_hooks.values())))


def attends(hook: Any) -> bool:
    """Return True if a hook is :func:`attend`."""
    return isinstance(hook, partial) and hook.func is attend


def take_away(host: nn.Module, hook: Any) -> None:
    """Delete the attention that a host's hook calls, and what a compiler, a checkpoint or FSDP put around it."""
    parent, _, name = hook.args[0].rpartition(".")
    with suppress(AttributeError):  # gone with what held it
        host.get_submodule(parent)._modules.pop(name, None)


def accept_weights_of(host: nn.Module, inner: str) -> None:
    """Let a host load the weights of attention that stood at a layer within it, which puts out the same."""
    host.register_load_state_dict_pre_hook(partial(_take_from, inner))


def accepts_weights(hook: Any) -> bool:
    """Return True if a hook was made by :func:`accept_weights_of`."""
    inner = getattr(hook, "hook", None)  # torch wraps hooks on loading
    return isinstance(inner, partial) and inner.func is _take_from


def _take_from(inner: str, host: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    before = f"{prefix}{inner}.{_CHILD}."
    for key in [key for key in state_dict if key.startswith(before)]:
        state_dict[f"{prefix}{_CHILD}.{key.removeprefix(before)}"] = state_dict.pop(key)


def places_below(model: nn.Module, hosts: Iterable[str]) -> dict[str, str]:
    """Say where below each host its attention is to live: in it, or in a layer of it if it would run a new child.

    Of the layers it is the last of those that occur least often in the network: one that blocks share, such as an
    activation, would hold the attention of them all.

    Raises:
        UserError: A host would run a new child, and has no layer.
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    taken: set[tuple[nn.Module, str]] = set()
    places = {}
    for host in hosts:
        layers = list(_layers(model.get_submodule(host)))
        if not layers:
            raise UserError(
                f"attach: {host or type(model).__name__} is empty, and would run the attention as a layer of its own. "
                "Choose modules that have layers, or are around it, with points=."
            )
        path, layer = min(layers, key=lambda found: uses[id(found[1])])
        child = next(name for name in _child_names() if not hasattr(layer, name) and (layer, name) not in taken)
        taken.add((layer, child))
        places[host] = ".".join([*path, child])
    return places


def _layers(module: nn.Module, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """List the layers of a container, and of those within it, with their paths, from the last; or a layer itself."""
    if not isinstance(module, CONTAINERS):
        yield path, module
        return
    for name, child in reversed(list(module.named_children())):
        yield from _layers(child, (*path, name))


def _child_names() -> Iterator[str]:
    yield _CHILD
    yield from (f"{_CHILD}_{number}" for number in count(2))
