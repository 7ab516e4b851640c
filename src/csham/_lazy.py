"""Import a package's public names when they are first used, so that looking a name up costs no import of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazy_names", "make_callable"]


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a package's module-level ``__getattr__`` (PEP 562).

    Args:
        package: ``__name__`` of the package.
        modules: For each public name, the module that defines it.
    """

    def resolve(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return resolve


def make_callable(package: str) -> None:
    """Let a package be called like its function of the same name, which importing the package hides."""
    sys.modules[package].__class__ = _CallableModule


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)
