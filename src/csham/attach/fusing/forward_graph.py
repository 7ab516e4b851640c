"""Read one module's forward as a graph of calls of its children, or find that it cannot be read that way.

What is traced is a twin: the module and all that is below it, of the same classes and attributes, that writes down what
is read of them. The module itself is not touched. Whatever else a forward could read or write, its globals among it, is
looked for in the code of the functions before they run (``outside``).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer

from csham.attach.fusing.outside import Method, OutsideError, methods_run
from csham.probing import same_randomness

__all__ = ["Conditions", "ForwardGraph", "below", "forward_graph"]

_INTERNAL = frozenset(vars(nn.Module()))
_REGISTERED = ("_parameters", "_buffers", "_modules")
_CONSTANTS = (type(None), bool, int, float, str, FunctionType, BuiltinFunctionType)
_IN_PLACE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul")


@dataclass(frozen=True)
class Conditions:
    """What a forward read of a module; with anything else it might do something else. Paths start at the module.

    Attributes:
        opened: Paths of modules whose forward was read too, and their classes.
        settings: Paths of modules, their attributes, and the values of these.
        absent: Paths of modules, and attributes that they did not have.
        inherited: Paths of modules, and attributes that they had by their class alone.
        children: Paths of modules, and the names of their children, where all of these were asked for.
        methods: Classes and names of the functions that ran.
    """

    opened: tuple[tuple[str, type], ...]
    settings: tuple[tuple[str, str, Any], ...]
    absent: tuple[tuple[str, str], ...]
    inherited: tuple[tuple[str, str], ...]
    children: tuple[tuple[str, tuple[str, ...]], ...]
    methods: tuple[Method, ...]

    def hold(self, module: nn.Module) -> bool:
        """Return True if the module is as it was, but for its methods; raise AttributeError or KeyError if not."""
        return (
            all(type(below(module, path)) is kind for path, kind in self.opened)
            and all(_is_set(below(module, path), name, value) for path, name, value in self.settings)
            and not any(hasattr(below(module, path), name) for path, name in self.absent)
            and not any(name in below(module, path).__dict__ for path, name in self.inherited)
            and all(_named(below(module, path)._modules) == names for path, names in self.children)
        )


@dataclass(frozen=True)
class ForwardGraph:
    """Graph of what a forward does.

    Attributes:
        graph: Calls of functions and of child modules.
        conditions: Under which it does so.
    """

    graph: Graph
    conditions: Conditions


def forward_graph(module: nn.Module, opened: Sequence[str], *, training: bool) -> ForwardGraph | None:
    """Trace a module's forward, as it is in one mode.

    Args:
        module: Any module.
        opened: Paths of descendants whose forward is read too; of all others the call alone is seen.
        training: In which mode.

    Returns:
        None where the forward depends on values, on random numbers, on what is outside of the module or on what no
        graph shows, or leaves something behind.
    """
    try:
        record = _Record()
        twins = _Twins(record, training)
        root = twins.of(module, "")
        for kind in (type(module), *(type(module.get_submodule(path)) for path in opened)):
            record.run(kind, "forward")
        before = twins.state()
        tracer = _Tracer(module, [root.get_submodule(path) for path in opened], record)
        # What checkpointing and offloading hang on: no graph shows either.
        alone = torch.autograd.graph.disable_saved_tensors_hooks("not while a forward is read")
        autocast = torch.autocast("cpu", enabled=not training, cache_enabled=False)
        with alone, torch.set_grad_enabled(training), autocast, same_randomness() as drawn:
            graph = tracer.trace(root)
            unlike = drawn() or record.refused or twins.state() != before
    except Exception:  # whatever third-party code does with a stand-in for a tensor
        return None
    kinds = tuple((path, type(module.get_submodule(path))) for path in opened)
    return None if unlike else ForwardGraph(graph, record.conditions(kinds))


def below(module: nn.Module, path: str) -> Any:
    """Return a descendant.

    In place of get_submodule, which takes ten times as long: this runs in every forward pass.
    """
    for name in path.split(".") if path else ():
        module = module._modules[name]  # type: ignore[assignment]
    return module


def _is_set(module: nn.Module, name: str, value: Any) -> bool:
    now = getattr(module, name)
    return type(now) is type(value) and bool(now == value)


def _named(children: Mapping[str, nn.Module | None]) -> tuple[str, ...]:
    return tuple(name for name, child in children.items() if child is not None)


@dataclass
class _Record:
    """What is read while a forward is traced."""

    settings: dict[tuple[str, str], Any] = field(default_factory=dict)
    absent: dict[tuple[str, str], None] = field(default_factory=dict)
    inherited: dict[tuple[str, str], None] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    methods: dict[Method, None] = field(default_factory=dict)
    on: bool = False
    refused: bool = False

    def conditions(self, opened: tuple[tuple[str, type], ...]) -> Conditions:
        """Make what was read the conditions of the graph."""
        settings = tuple((path, name, value) for (path, name), value in self.settings.items())
        absent, inherited = tuple(self.absent), tuple(self.inherited)
        return Conditions(opened, settings, absent, inherited, tuple(self.children.items()), tuple(self.methods))

    def run(self, kind: type, name: str) -> None:
        """Note that a method is about to run."""
        self.methods |= methods_run(kind, name)

    def read(self, module: nn.Module, path: str, kind: type, name: str, value: Any) -> None:
        """Note what an attribute is."""
        if name in _INTERNAL:
            if name == "_modules":
                self.children[path] = _named(value)
            elif name in ("_parameters", "_buffers"):
                raise OutsideError("its tensors are at hand, and not only stand-ins for them")
        elif name in object.__getattribute__(module, "__dict__"):
            self._set(path, name, value)
        else:
            self._of_class(path, kind, name, value)

    def lacks(self, module: nn.Module, path: str, kind: type, name: str) -> None:
        """Note an attribute that is no plain one: a tensor, a child, None in the place of one, or nothing at all."""
        state = object.__getattribute__(module, "__dict__")
        holders = [state[kept] for kept in _REGISTERED if name in state[kept]]
        if holders:
            if holders[0][name] is None:
                self._set(path, name, None)
        elif any("__getattr__" in vars(base) for base in kind.__mro__ if base is not nn.Module):
            raise OutsideError(f"{name} comes from somewhere else")
        else:
            self.absent[path, name] = None

    def _set(self, path: str, name: str, value: Any) -> None:
        if not _is_constant(value):
            raise OutsideError(f"{name} may change without being replaced")
        if isinstance(value, FunctionType):
            self.methods |= methods_run(None, value)
        self.settings[path, name] = value

    def _of_class(self, path: str, kind: type, name: str, value: Any) -> None:
        if name.startswith("__"):
            return
        raw = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), self)
        if raw is vars(nn.Module).get(name, self):
            return
        if isinstance(raw, property):
            self.methods |= methods_run(kind, raw.fget)
        elif isinstance(raw, FunctionType | staticmethod | classmethod):
            self.run(kind, name)
            self.inherited[path, name] = None
        else:
            self._set(path, name, value)


def _is_constant(value: Any) -> bool:
    return isinstance(value, _CONSTANTS) or (type(value) is tuple and all(map(_is_constant, value)))


class _Twins:
    """Twins of a module and of all that is below it."""

    def __init__(self, record: _Record, training: bool) -> None:
        self._record = record
        self._training = training
        self._kinds: dict[type, Any] = {}
        self._made: dict[int, nn.Module] = {}
        self._paths: dict[int, str] = {}  # by the id of a twin

    def of(self, module: nn.Module, path: str) -> nn.Module:
        """Make a module's twin, one of a module that is there more than once."""
        if id(module) in self._made:
            return self._made[id(module)]
        kind = type(module)
        if kind not in self._kinds:
            self._kinds[kind] = self._kind(kind)
        twin: nn.Module = object.__new__(self._kinds[kind])
        self._made[id(module)], self._paths[id(twin)] = twin, path
        state = {name: v.copy() if isinstance(v, dict) else v for name, v in vars(module).items()}
        for name, child in module._modules.items():
            state["_modules"][name] = None if child is None else self.of(child, f"{path}.{name}".lstrip("."))
        object.__getattribute__(twin, "__dict__").update(state, training=self._training)
        return twin

    def state(self) -> list[dict[Any, int]]:
        """Say what every attribute, tensor and child is, by its id: what a forward leaves behind is in there."""
        found = []
        for twin in self._made.values():
            state = object.__getattribute__(twin, "__dict__")
            held = {(kept, name): id(v) for kept in _REGISTERED for name, v in state[kept].items()}
            found.append({name: id(v) for name, v in state.items()} | held)
        return found

    def _kind(self, kind: Any) -> Any:
        if any("__init_subclass__" in vars(base) for base in kind.__mro__[:-1]):
            raise OutsideError(f"{kind.__name__} wants to know of its subclasses")
        record, paths = self._record, self._paths

        def read(module: nn.Module, name: str) -> Any:
            # What the tracer itself looks at is nothing that the forward reads.
            noted = record.on and sys._getframe(1).f_globals.get("__name__") != "torch.fx._symbolic_trace"
            try:
                try:
                    value = kind.__getattribute__(module, name)
                except AttributeError:
                    if noted:
                        record.lacks(module, paths[id(module)], kind, name)
                    raise
                if noted:
                    record.read(module, paths[id(module)], kind, name, value)
            except OutsideError:
                record.refused = True  # the forward may catch the error
                raise
            return value

        return type(kind)(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})


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
    def __init__(self, module: nn.Module, opened: Sequence[nn.Module], record: _Record) -> None:
        super().__init__()
        self._opened = {id(twin) for twin in opened}
        tensors = [*module.named_parameters(), *module.named_buffers()]
        self._tensors: Mapping[int, str] = {id(tensor): name for name, tensor in tensors}
        self._record = record
        self._context: tuple[bool, ...] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._opened

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_args_for_root(*args, **kwargs)
        self._record.on = True  # the forward is next
        return made

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        # Buffers too: what is computed from their values is not to be computed here.
        name = self._tensors.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        self._context = self._context or _context()
        if _context() != self._context:
            raise RuntimeError("part of the forward runs without gradients or without autocast")
        return super().create_node(*args, **kwargs)


def _context() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast
