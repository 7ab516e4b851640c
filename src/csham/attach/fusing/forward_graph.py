"""Read one module's forward as a graph of calls of its children, or find that it cannot be read that way."""

from __future__ import annotations

import operator
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy, Tracer

from csham.probing import unchanged

__all__ = ["ForwardGraph", "Setting", "forward_graph"]

# A path below the module, an attribute of what is there, and its value.
Setting = tuple[str, str, Any]

_INTERNAL = frozenset(vars(nn.Module()))
_CONSTANTS = (type(None), bool, int, float, str, FunctionType, BuiltinFunctionType)
_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul")


@dataclass(frozen=True)
class ForwardGraph:
    """Graph of what a forward does.

    Attributes:
        graph: Calls of functions and of child modules.
        settings: Attributes that the forward read; with other values it might do something else.
    """

    graph: Graph
    settings: tuple[Setting, ...]


def forward_graph(module: nn.Module, opened: Sequence[str], *, training: bool) -> ForwardGraph | None:
    """Trace a module's forward, as it is in one mode, and leave the module as it was.

    Args:
        module: Any module.
        opened: Paths of descendants whose forward is read too; of all others the call alone is seen.
        training: In which mode.

    Returns:
        None where the forward depends on values, on random numbers or on what no graph shows, or leaves something
        behind.
    """
    reads: dict[tuple[str, str], Any] = {}
    twins = {"": _twin(module, "", reads)}
    for path in sorted(opened):
        parent, _, name = path.rpartition(".")
        twins[path] = twins[parent]._modules[name] = _twin(module.get_submodule(path), path, reads)
    before = [dict(vars(twin)) for twin in twins.values()]
    versions = _versions(module)
    reads.clear()
    try:
        with unchanged(module), _in_mode([*module.modules(), *twins.values()], training), _without_randomness():
            graph = _Tracer(twins.values()).trace(twins[""])
            written = _versions(module) != versions
    except Exception:  # whatever third-party code does with a stand-in for a tensor
        return None
    settings = tuple((path, name, value) for (path, name), value in reads.items())
    if written:  # done while tracing, such as to count calls, and in no graph
        return None
    if not all(isinstance(value, _CONSTANTS) for *_, value in settings):
        return None
    if not all(_same(old, vars(twin)) for old, twin in zip(before, twins.values(), strict=True)):
        return None
    absent = [(path, name, None) for path, twin in twins.items() for name, m in twin._modules.items() if m is None]
    return ForwardGraph(graph, (*settings, *absent))


def _twin(module: nn.Module, path: str, reads: dict[tuple[str, str], Any]) -> nn.Module:
    """Make a module of the same attributes that writes down which of them are read, and may be written to."""
    kind: Any = type(module)

    def read(self: nn.Module, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if name not in _INTERNAL and name in object.__getattribute__(self, "__dict__"):
            reads[path, name] = value
        return value

    twin = object.__new__(type(kind)(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__}))
    attributes = {k: v.copy() if isinstance(v, (dict, list, set)) else v for k, v in vars(module).items()}
    object.__getattribute__(twin, "__dict__").update(attributes)
    return twin


def _versions(module: nn.Module) -> list[int]:
    return [tensor._version for tensor in [*module.parameters(), *module.buffers()]]


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(after[name] is value for name, value in before.items())


@contextmanager
def _in_mode(modules: Sequence[nn.Module], training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = training
        with torch.set_grad_enabled(training), torch.autocast("cpu", enabled=not training, cache_enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _without_randomness() -> Iterator[None]:
    """Refuse what draws random numbers: a forward that rolls dice is not the same the next time."""
    python, ours = random.getstate(), torch.get_rng_state()
    numpy = sys.modules.get("numpy.random")
    theirs = numpy.get_state() if numpy is not None else None
    try:
        yield
        same = random.getstate() == python and torch.equal(torch.get_rng_state(), ours)
        if not same or (numpy is not None and pickle.dumps(numpy.get_state()) != pickle.dumps(theirs)):
            raise RuntimeError("random numbers were drawn")
    finally:
        random.setstate(python)
        torch.set_rng_state(ours)
        if numpy is not None:
            numpy.set_state(theirs)


class _Proxy(Proxy):
    """Keeps ``x += y`` apart from ``x = x + y``, which torch.fx does not."""


def _recorder(name: str) -> Callable[[Proxy, Any], Proxy]:
    function = getattr(operator, name)

    def record(self: Proxy, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in _IN_PLACE:
    setattr(_Proxy, f"__i{_name}__", _recorder(f"i{_name}"))


class _Tracer(Tracer):
    def __init__(self, opened: Any) -> None:
        super().__init__()
        self._opened = {id(module) for module in opened}
        self._context = _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._opened

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _context() != self._context:
            raise RuntimeError("part of the forward runs without gradients or without autocast")
        return super().create_node(*args, **kwargs)


def _context() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast
