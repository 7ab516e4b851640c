"""Find in the code of a function what it reads and writes outside of its module: globals, and what closures hold.

Functions, classes and Python modules are what code is made of. Anything else, such as a number or a list, may be
another at the next call, or may be what a call leaves something in; code that names it is not read.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

__all__ = ["Method", "OutsideError", "methods_run"]

# A class, and the name of one of its functions.
Method = tuple[type, str]

_PARTS = (FunctionType, MethodType, BuiltinFunctionType, ModuleType, type)
_LIBRARIES = frozenset({"torch", "numpy", *sys.stdlib_module_names})
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_BINDS = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"})
_DEFAULTS = (type(None), bool, int, float, str)


class OutsideError(Exception):
    """A forward reads or writes what is outside of its module."""


def methods_run(kind: type | None, method: str | Callable[..., Any] | None) -> dict[Method, None]:
    """Look through a function and those that it names.

    Args:
        kind: The class of what the function is called on.
        method: The function, or its name.

    Returns:
        The classes and names of the methods among them.

    Raises:
        OutsideError: One of them names what is neither function nor class nor module.
    """
    search = _Search()
    if isinstance(method, str):
        search.method(kind, method)
    else:
        search.value(method, kind)
    return search.methods


class _Search:
    def __init__(self) -> None:
        self.methods: dict[Method, None] = {}
        self._seen: set[tuple[CodeType, type | None]] = set()

    def method(self, kind: Any, name: str) -> None:
        """Look through a method of a class, and through those of its bases that it may call by ``super``."""
        self.value(getattr(kind, name), kind)
        if not _is_librarys(kind.__module__):
            self.methods[kind, name] = None

    def value(self, value: Any, kind: type | None) -> None:
        """Look at what a name stands for."""
        value = getattr(value, "__func__", value)
        if isinstance(value, FunctionType):
            if (value.__code__, kind) not in self._seen:
                self._seen.add((value.__code__, kind))
                self._function(value, kind)
        elif not isinstance(value, _PARTS):
            own = type(value).__module__.partition(".")[0] == "torch" and not isinstance(value, nn.Module)
            if not (own and callable(value)):  # as an operator is, or a scripted function
                raise OutsideError(f"a {type(value).__name__} is outside of the module")

    def _function(self, function: FunctionType, kind: type | None) -> None:
        library = _is_librarys(function.__globals__.get("__name__", ""))
        for cell in function.__closure__ or ():
            held = cell.cell_contents
            if not library or isinstance(held, FunctionType):  # what a decorator holds is run too
                self.value(held, kind)
        if library:
            return
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if not all(isinstance(default, _DEFAULTS) for default in defaults):
            raise OutsideError("a default outlives the call")
        for chain in _names(function.__code__):
            self._follow(function.__globals__, chain, kind)
            if chain[0] == "super":
                self._bases(function.__code__, kind)

    def _follow(self, known: dict[str, Any], chain: tuple[str, ...], kind: type | None) -> None:
        """Go along ``name.attribute.attribute``, as far as it leads over modules, classes and functions."""
        if chain[0] not in known:
            return  # a builtin
        value = known[chain[0]]
        self.value(value, kind)
        for name in chain[1:]:
            if not isinstance(value, ModuleType | type | FunctionType) or _is_librarys(_home(value)):
                return
            owner, value = value, getattr(value, name)
            if isinstance(owner, type) and isinstance(value, FunctionType):
                self.method(owner, name)
            else:
                self.value(value, kind)

    def _bases(self, code: CodeType, kind: type | None) -> None:
        if kind is None:
            return
        for base in kind.__mro__:
            for name in code.co_names:
                if isinstance(vars(base).get(name), FunctionType) and not _is_librarys(base.__module__):
                    self.value(vars(base)[name], kind)
                    self.methods[kind, name] = None


def _is_librarys(name: str) -> bool:
    return name.partition(".")[0] in _LIBRARIES


def _home(value: Any) -> str:
    return str(value.__name__ if isinstance(value, ModuleType) else value.__module__)


@cache
def _names(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """List the globals that code reads, each with the attributes of it."""
    return tuple(tuple(chain) for chain in _chains(code))


def _chains(code: CodeType) -> Iterator[list[str]]:
    chain: list[str] | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in _BINDS:
            raise OutsideError("a global is bound")
        if chain is not None and instruction.opname in _ATTRIBUTES:
            chain.append(instruction.argval)
            continue
        if chain is not None:
            yield chain
        chain = [instruction.argval] if instruction.opname in _LOADS else None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _chains(constant)
