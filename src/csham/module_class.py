"""Change the class of a module that stays where it is: the one file that does so.

A module of someone else's network is to run another ``forward``, or to be called in another way. Another class leaves
it the same object, with its parameters and hooks, its names in the ``state_dict``, and whatever an optimizer, DDP or
the user's own code has of it. A wrapper in its place would change names, and a ``forward`` set on the instance would be
bound to it, so that a deep copy ran the original's. The price is that ``type(module)`` is another than it was: a class
made here has the old one as its base, goes by its name, and can be taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["base_class", "can_subclass", "change_class", "is_made_by", "subclass", "take_back"]

_MADE_BY = "_csham_made_by"


def change_class(module: nn.Module, kind: Any) -> None:
    """Give a module another class, one that works with the attributes it has."""
    module.__class__ = kind


def can_subclass(module: nn.Module) -> bool:
    """Return True if a module's class may be subclassed and its instances still be copied and pickled."""
    kind = type(module)
    custom = ("__reduce__", "__reduce_ex__", "__deepcopy__", "__init_subclass__")
    peculiar = any(name in vars(base) for base in kind.__mro__[:-1] for name in custom)
    return not (peculiar or "forward" in module.__dict__)


def subclass(kind: Any, make: Callable[..., Any], *args: Any, **members: Any) -> Any:
    """Make a subclass that goes by the name of its base.

    Args:
        kind: The base.
        make: Function that makes this subclass of the base and ``args``, called again for a copied or unpickled module.
        *args: Further arguments of it.
        **members: Members that the subclass has of its own.
    """

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        _, _, *state = kind.__reduce_ex__(self, protocol)
        return _new, (make, kind, *args), *state

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), {**names, _MADE_BY: make, "__reduce_ex__": reduce, **members})


def is_made_by(module: nn.Module, make: Callable[..., Any]) -> bool:
    """Return True if a module's class is a subclass that ``make`` made, and nothing changed it since."""
    return vars(type(module)).get(_MADE_BY) is make


def base_class(module: nn.Module, make: Callable[..., Any]) -> Any:
    """Return the class of a module, without the subclass that ``make`` made of it."""
    return type(module).__base__ if is_made_by(module, make) else type(module)


def take_back(module: nn.Module, make: Callable[..., Any]) -> None:
    """Give a module the class back that it had before a subclass that ``make`` made."""
    change_class(module, base_class(module, make))


def _new(make: Callable[..., Any], kind: Any, *args: Any) -> nn.Module:
    made = make(kind, *args)
    return made.__new__(made)
