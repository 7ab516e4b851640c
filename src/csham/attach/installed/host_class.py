"""A class for hosts that torch.fx traces, so that it sees attention as a node of its own.

torch.fx calls a layer such as a batch norm as a whole, hook and attention included. Whatever then folds layers of
exactly that class into others, as ``torch.fx.experimental.optimization.fuse`` does, would fold the attention away.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

from torch import nn
from torch.fx import Proxy, Tracer

from csham.attach.installed.attached import Attached, attends
from csham.attach.installed.transfer import ChannelWeightTransfer
from csham.module_class import base_class, can_subclass, change_class, is_made_by, subclass, take_back

__all__ = ["is_marked", "mark_host", "plain_class", "unmark_host", "with_plain_class"]

Result = TypeVar("Result")


def mark_host(host: nn.Module) -> None:
    """Give a host a subclass of its class that traces in two nodes, where it can have one."""
    kind: Any = type(host)
    if can_subclass(host):  # one that is marked cannot be again
        change_class(host, _marked(kind))


def unmark_host(host: nn.Module) -> None:
    """Give a host back the class that :func:`mark_host` took, if that was the last to change it."""
    take_back(host, _marked)


def with_plain_class(module: nn.Module, change: Callable[[nn.Module], Result]) -> Result:
    """Do with a module what asks for its class, as if it were no host."""
    marked = is_marked(module)
    unmark_host(module)
    result = change(module)
    if marked:
        mark_host(module)
    return result


def is_marked(host: nn.Module) -> bool:
    """Return True if :func:`mark_host` was the last to change a host's class."""
    return is_made_by(host, _marked)


def plain_class(module: nn.Module) -> Any:
    """Return the class of a module, that of a host without what :func:`mark_host` made of it."""
    return base_class(module, _marked)


@cache
def _marked(kind: Any) -> Any:
    def call(self: nn.Module, *args: Any, attend: bool = True, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Proxy):
            return _traced(kind, self, attend, *args, **kwargs)
        return kind.__call__(self, *args, **kwargs) if attend else self.forward(*args, **kwargs)

    return subclass(kind, _marked, __call__=call)


def _traced(kind: Any, host: nn.Module, attend: bool, x: Proxy, *args: Any, **kwargs: Any) -> Any:
    """Let a tracer see, where it does not look into a host, the call of its forward and that of attention."""
    tracer: Any = x.tracer
    if not attend:  # a graph of such calls is traced again
        return _forward_node(host, x, *args, **kwargs)
    attached = _only_attached(host)
    if attached is None or not isinstance(tracer, Tracer) or not _is_leaf(tracer, host) or _is_leaf(tracer, attached):
        return kind.__call__(host, x, *args, **kwargs)
    # Under the name of the attention, which begins with that of the host.
    return tracer.call_module(attached, partial(_as_two_nodes, host, attached), (x, *args), kwargs)


def _as_two_nodes(host: nn.Module, attached: Attached, x: Proxy, *args: Any, **kwargs: Any) -> Any:
    return attached(_forward_node(host, x, *args, **kwargs))


def _forward_node(host: nn.Module, x: Proxy, *args: Any, **kwargs: Any) -> Proxy:
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(host), (x, *args), {**kwargs, "attend": False})


def _only_attached(host: nn.Module) -> Attached | None:
    """Return the attention of a host without hooks of others: these are called where the host is, and not before."""
    hooks: list[Any] = [*host._forward_hooks.values(), *host._forward_pre_hooks.values()]
    hooks = [hook for hook in hooks if not ChannelWeightTransfer.owns(hook)]
    if len(hooks) != 1 or not attends(hooks[0]) or host._backward_hooks or host._backward_pre_hooks:
        return None
    attached = host.get_submodule(hooks[0].args[0])
    return attached if isinstance(attached, Attached) else None


def _is_leaf(tracer: Tracer, module: nn.Module) -> bool:
    return tracer.is_leaf_module(module, tracer.path_of_module(module))
