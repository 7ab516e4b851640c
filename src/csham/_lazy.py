"""Import a package's public names when they are first used, so that looking a name up costs no import of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from csham._extras import how_to_install

__all__ = ["lazy_names", "make_callable"]


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a package's module-level ``__getattr__`` (PEP 562), which knows the modules in the package too.

    Args:
        package: ``__name__`` of the package.
        modules: For each public name, the module that defines it.
    """

    def resolve(name: str) -> Any:
        if name not in modules and (name.startswith("_") or find_spec(f"{package}.{name}") is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = (
                getattr(import_module(modules[name]), name) if name in modules else import_module(f"{package}.{name}")
            )
        except ModuleNotFoundError as err:
            message = how_to_install(f"{package}.{name}", err)
            if message is None:
                raise
            raise ModuleNotFoundError(message, name=err.name) from err
        setattr(sys.modules[package], name, value)
        return value

    return resolve


def make_callable(package: str) -> None:
    """Let a package be called like its function of the same name, which importing the package hides."""
    sys.modules[package].__class__ = _CallableModule


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)
