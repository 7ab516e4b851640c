"""Give one module another class, a subclass of its own, so that it still copies and pickles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["can_subclass", "subclass"]


def can_subclass(module: nn.Module) -> bool:
    """Return True if a module's class may be subclassed and its instances still be copied and pickled."""
    kind = type(module)
    custom = ("__reduce__", "__reduce_ex__", "__deepcopy__", "__init_subclass__")
    peculiar = any(name in vars(base) for base in kind.__mro__[:-1] for name in custom)
    return not (peculiar or "forward" in module.__dict__)


def subclass(kind: Any, restore: Callable[..., Any], *args: Any, **members: Any) -> Any:
    """Make a subclass that goes by the name of its base.

    Args:
        kind: The base.
        restore: Function that makes the subclass of the base and ``args`` again, for a copied or unpickled instance.
        *args: Further arguments of it.
        **members: Members that the subclass has of its own.
    """

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return _new, (restore, kind, *args), *state

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), {**names, "__reduce_ex__": reduce, **members})


def _new(restore: Callable[..., Any], kind: Any, *args: Any) -> nn.Module:
    made = restore(kind, *args)
    return made.__new__(made)
