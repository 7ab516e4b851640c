"""Classes that hide an attention from tools that read a network's code: torch.fx sees one node, TorchScript refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.fx import Proxy

from csham.errors import UserError

__all__ = ["Opaque", "Unscriptable", "as_written"]


class Unscriptable:
    """Base class put before a module that ``torch.jit.script`` cannot read."""

    def __prepare_scriptable__(self) -> None:
        raise UserError(
            f"torch.jit.script cannot read {type(self).__name__}. Use torch.export.export, `csham export`, or "
            "torch.jit.trace."
        )


class Opaque(Unscriptable):
    """Base class put before a module whose forward looks at its input, or calls what is not written in Python.

    For torch.fx, and with it timm's ``feature_cls="fx"`` and torchvision's ``create_feature_extractor``, the module is
    one node.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward = getattr(cls, "forward", None)
        if forward is not None and not hasattr(forward, _MARK):
            cls.forward = _or_node(forward)  # type: ignore[attr-defined]

    def as_node(self, x: Proxy, *args: Any, **kwargs: Any) -> Proxy:
        """Write a call of this module into the graph that torch.fx is tracing, and return what stands for its result.

        Args:
            x: Stand-in for the module's input.
            *args: Other arguments of the call.
            **kwargs: As ``args``.

        Raises:
            UserError: The module is not a part of what is traced.
        """
        return x.tracer.create_proxy("call_module", self._traced_path(x), (x, *args), kwargs)

    def _traced_path(self, x: Proxy) -> str:
        try:
            path = x.tracer.path_of_module(self)  # type: ignore[attr-defined]
        except NameError:
            path = ""
        if not path:
            raise UserError(f"torch.fx takes {type(self).__name__} as a whole: trace a network that holds it.")
        return str(path)


def as_written(forward: Any) -> Any:
    """Return a class's ``forward`` without what lets torch.fx write a node in its place."""
    return forward.__wrapped__ if hasattr(forward, _MARK) else forward


_MARK = "_csham_one_node"


def _or_node(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(x, Proxy):
            return forward(self, *args, **kwargs)
        return self.as_node(x, *args[1:], **{name: value for name, value in kwargs.items() if value is not x})

    setattr(called, _MARK, True)
    return called
