"""Blocks whose end, ``relu(attention(x) + shortcut)``, is one call.

A fused block's class is a subclass, made here, of what it was; its forward is the block's own, except that the
attention is handed the shortcut. Whenever something has changed that the forward cannot know of, such as a hook on the
activation, which is not called any more, the block's own forward runs, and attention in its hook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules.module import _has_any_global_hook

from csham.attach.fusing.forward_graph import Conditions, below
from csham.attach.installed.attached import Attached, attends
from csham.attach.installed.host_class import unmark_host
from csham.attach.installed.keeping import watches
from csham.attach.installed.transfer import ChannelWeightTransfer
from csham.module_class import change_class, subclass, take_back
from csham.ops.calls import has_hooks

__all__ = ["End", "Epilogue", "can_bypass", "can_open", "fuse_block", "unfuse_block"]


@dataclass(frozen=True)
class End:
    """The end of one residual branch; all paths start at the block.

    Attributes:
        host: The module whose output is attended to.
        attached: The attention that lives at the host.
        activation: The activation of the sum, None where it is a function.
        identities: Modules on the way that do nothing.
    """

    host: str
    attached: str
    activation: str | None
    identities: tuple[str, ...]


@dataclass(frozen=True)
class Epilogue:
    """A block's forward in which the attention adds the shortcut and activates the sum.

    Attributes:
        source: The forward.
        ends: Ends computed in one call.
        conditions: What the forward was read with.
    """

    source: str
    ends: tuple[End, ...]
    conditions: Conditions | None = None  # in networks that were pickled before there were any

    def applies(self, block: nn.Module, args: tuple[Any, ...]) -> bool:
        """Return True if the block computes with it what it computes without."""
        conditions = self.conditions
        if conditions is None or _has_any_global_hook() or not all(isinstance(x, Tensor) for x in args):
            return False
        try:
            return (
                conditions.hold(block)
                and all(can_open(below(block, path)) for path, _ in conditions.opened)
                and all(_is_whole(block, end) for end in self.ends)
            )
        except (AttributeError, KeyError):  # something is gone
            return False


def can_open(module: nn.Module) -> bool:
    """Return True if nothing but a module's forward happens when it is called."""
    return not (_is_watched(module) or _attends(module) or "forward" in module.__dict__)


def can_bypass(block: nn.Module, end: End) -> bool:
    """Return True if the activation and the identities of an end may be left uncalled."""
    if end.activation is not None and not _is_plain(below(block, end.activation), nn.ReLU):
        return False
    return all(_is_plain(below(block, path), nn.Identity) for path in end.identities)


def fuse_block(block: nn.Module, epilogue: Epilogue) -> None:
    """Give a block its epilogue."""
    unmark_host(block)
    kind: Any = type(block)
    change_class(block, _fused(kind, epilogue))


def unfuse_block(block: nn.Module) -> None:
    """Give a block back its own forward, if :func:`fuse_block` took it."""
    take_back(block, _fused)


@cache  # blocks alike share their class, and with it what torch.compile makes of it
def _fused(kind: Any, epilogue: Epilogue) -> Any:
    run = _compiled(epilogue.source)
    methods = list(_methods(epilogue))

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = all(getattr(owner, name) == function for owner, name, function in methods)
        if own and not kwargs and epilogue.applies(self, args):
            return run(self, *args)
        return kind.forward(self, *args, **kwargs)

    return subclass(kind, _fused, epilogue, forward=forward)


def _methods(epilogue: Epilogue) -> Iterator[tuple[type, str, Any]]:
    """List classes, names and functions of the methods that an epilogue was made of, those of bases among them."""
    for kind, name in epilogue.conditions.methods if epilogue.conditions is not None else ():
        for base in kind.__mro__:
            if base is kind or (base is not nn.Module and name in vars(base)):
                yield base, name, getattr(base, name)


def _compiled(source: str) -> Callable[..., Any]:
    # As torch.fx.GraphModule does it, which would be another module than the block.
    scope = dict(Graph().python_code("self").globals)
    exec(compile(source, "<csham epilogue>", "exec"), scope)  # noqa: S102  written by torch.fx from the block's graph
    return scope["forward"]


def _is_whole(block: nn.Module, end: End) -> bool:
    """Return True if all of an end is still there, and nobody sees what lies between the host and the activation."""
    host, attached = below(block, end.host), below(block, end.attached)
    return (
        _attends(host)
        and not _is_watched(host)
        and isinstance(attached, Attached)  # not what wraps it
        and not has_hooks(attached)
        and can_bypass(block, end)
    )


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    return type(module) is kind and can_open(module)


def _attends(module: nn.Module) -> bool:
    return any(attends(hook) for hook in module._forward_hooks.values())


def _is_watched(module: nn.Module) -> bool:
    """Return True if a call of a module is more than its forward, its attention and what attaching put around it."""
    # The transfer's hooks are there for calls of this module alone, by activation checkpointing.
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    ours = (attends, watches, ChannelWeightTransfer.owns)
    strange = any(not any(owns(hook) for owns in ours) for some in hooks for hook in some.values())
    return bool(strange or module._backward_hooks or module._backward_pre_hooks or module._compiled_call_impl)
