"""Run a third-party network once to learn something about it, and leave it as it was."""

from __future__ import annotations

import operator
import pickle
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "blank_image",
    "copies_shared",
    "eagerly",
    "evaluating",
    "is_compiled",
    "likeness",
    "same_randomness",
    "unchanged",
    "uncompiled",
]

# An OrderedDict is a dict whose order only its own functions know.
_DICTIONARIES = (OrderedDict, dict)
_CONTAINERS: tuple[Any, ...] = (*_DICTIONARIES, list, deque, set)
_FIXED = (tuple, frozenset)
_NO_CONTAINERS = frozenset({type(None), bool, int, float, complex, str, bytes, FunctionType, ModuleType, type})
# Objects of other modules of Python's own stand for something outside, such as a thread or a file.
_PLAIN = frozenset({"abc", "builtins", "collections", "types", "typing"})
_NOT_PLAIN = frozenset({"torch", *sys.stdlib_module_names}) - _PLAIN
_SHARED: ContextVar[dict[int, _Tensor] | None] = ContextVar("_SHARED", default=None)
# How many containers and objects are looked into: an attribute may lead to all that a program has.
_MOST = 100_000


def blank_image(model: nn.Module, size: Sequence[int]) -> Tensor:
    """Make a batch of one image, (1, C, H, W), of zeros, on the device and of the type of the model's weights.

    Args:
        model: The network that will see it.
        size: (C, H, W).
    """
    like = likeness(model)
    return torch.zeros(1, *size, device=like.device, dtype=like.dtype)


def likeness(model: nn.Module) -> Tensor:
    """Return a tensor on the device and of the type of a network's weights."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and every module back into its own mode afterwards."""
    with _same_modes(model):
        model.eval()
        with torch.no_grad():
            yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put a network back into the state it had: modes, weights, buffers, and whatever else its modules remember.

    Observers, counters, data-dependent initialisation and layers that merge their weights change in evaluation too. So
    do lists and objects that modules hold, and the generators of random numbers. Of every tensor a copy is held
    meanwhile. What a lazy module makes of itself at its first run stays.
    """
    # Not of DDP itself, which keeps in step with what it has in C++.
    containers, tensors = _held_by(uncompiled(model).modules())
    try:
        with same_randomness(), _same_modes(model):  # modes first: a module that is told of its own may change weights
            _leave_values_out(model)
            yield
    finally:
        for container in containers:
            container.put_back()
        for tensor in tensors:
            tensor.put_back()


@contextmanager
def copies_shared() -> Iterator[None]:
    """Let one copy of a tensor serve all that is :func:`unchanged` within; in between nothing may write into it."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


@contextmanager
def same_randomness() -> Iterator[Callable[[], bool]]:
    """Put the generators of random numbers back, and give what says whether one of them was used."""
    # As far as they are there: numpy may not be imported, and no GPU is woken for this.
    ways: list[tuple[Any, Any]] = [(random.getstate, random.setstate), (torch.get_rng_state, torch.set_rng_state)]
    if "numpy.random" in sys.modules:
        numpy = sys.modules["numpy.random"]
        ways.append((numpy.get_state, numpy.set_state))
    if torch.cuda.is_initialized():
        places = range(torch.cuda.device_count())
        ways += [(partial(torch.cuda.get_rng_state, i), partial(torch.cuda.set_rng_state, device=i)) for i in places]
    before = [(get, put, get()) for get, put in ways]
    try:
        yield lambda: any(not _alike(get(), state) for get, _, state in before)
    finally:
        for _, put, state in before:
            put(state)


def _alike(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else pickle.dumps(one) == pickle.dumps(other)


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # By train(), from above to below, which some modules do more in, such as to take a merged LoRA apart again.
        for module, training in modes:
            if module.training != training:
                module.train(training)
        for module, training in modes:
            module.training = training  # where train() does not, as of layers that are to stay frozen


def _leave_values_out(model: nn.Module) -> None:
    """Let buffers be on the meta device where weights are: accelerate's ``init_empty_weights`` leaves buffers alone."""
    if any(parameter.is_meta for parameter in model.parameters()):
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else buffer.to("meta")


def _is_lazy(module: nn.Module) -> bool:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(nn.parameter.is_lazy(tensor) for tensor in tensors)


def _held_by(modules: Iterable[nn.Module]) -> tuple[list[_Container], list[_Tensor]]:
    """Find what modules hold, in containers and in plain objects too, the nearest first, everything once."""
    containers: list[_Container] = []
    tensors: list[_Tensor] = []
    queue: deque[Any] = deque(modules)
    seen: dict[int, Any] = {}  # which keeps them alive, and their ids theirs
    while queue and len(containers) < _MOST:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Tensor):
            tensors += [_copied(value)] if _has_memory(value) else []
            continue
        kind: Any = type(value)
        found = [_Container(value, _kind(kind))] if isinstance(value, _CONTAINERS) else []
        state = None if kind in _CONTAINERS else _attributes(value)
        if state is not None:
            found.append(_Container(state, dict))
        containers += found
        for holder in [container.held for container in found] + ([value] if isinstance(value, _FIXED) else []):
            queue.extend(held for held in holder if type(held) not in _NO_CONTAINERS)
    return containers, tensors


def _attributes(value: Any) -> Any:
    """Return the attributes of a module, or of an object that is nothing but a holder of them."""
    if isinstance(value, nn.Module):
        return None if _is_wrapper(value) or _is_lazy(value) else vars(value)
    kind: Any = type(value)
    if not _is_plain(kind):
        return None
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


@cache
def _kind(container: Any) -> Any:
    return next(kind for kind in _CONTAINERS if issubclass(container, kind))


@cache
def _is_plain(kind: Any) -> bool:
    homes = {str(base.__module__).partition(".")[0] for base in kind.__mro__}
    return not issubclass(kind, type) and homes.isdisjoint(_NOT_PLAIN)


def _copied(tensor: Tensor) -> _Tensor:
    shared = _SHARED.get()
    if shared is None:
        return _Tensor(tensor)
    if id(tensor) not in shared or not shared[id(tensor)].is_in_place():
        shared[id(tensor)] = _Tensor(tensor)
    return shared[id(tensor)]


class _Container:
    """A container, and what it held."""

    def __init__(self, container: Any, kind: Any) -> None:
        self.container = container
        self.kind = kind  # by whose functions, not by those of a subclass, which may do more
        self.held = self._content()

    def _content(self) -> list[Any]:
        """List values, of a dictionary its keys and then its values."""
        if not self.kind.__len__(self.container):
            return []  # most are, and an OrderedDict takes its time
        if self.kind in _DICTIONARIES:
            return [*self.kind.keys(self.container), *self.kind.values(self.container)]
        return list(self.kind.__iter__(self.container))

    def put_back(self) -> None:
        """Let the container hold what it held, unless it does."""
        now, kind = self._content(), self.kind
        if len(now) == len(self.held) and all(map(operator.is_, now, self.held)):
            return
        kind.clear(self.container)
        if kind in _DICTIONARIES:
            number = len(self.held) // 2
            for name, value in zip(self.held[:number], self.held[number:], strict=True):
                kind.__setitem__(self.container, name, value)
        else:
            (kind.update if kind is set else kind.extend)(self.container, self.held)


def _has_memory(tensor: Tensor) -> bool:
    strided = tensor.layout is torch.strided and not tensor.is_meta and not nn.parameter.is_lazy(tensor)
    return strided and not is_traceable_wrapper_subclass(tensor)


class _Tensor:
    """A tensor, and the place and the values it had."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.place = tensor.data  # shares memory, and keeps its shape when the tensor is resized
        self.values = self.place.clone()

    def put_back(self) -> None:
        """Give the tensor back its place and, where they changed, its values."""
        if not self.is_in_place():
            self.tensor.data = self.place
        if not torch.equal(_bits(self.place), _bits(self.values)):
            self.place.copy_(self.values)  # by .data: no graph of the caller's is to see a change

    def is_in_place(self) -> bool:
        """Return True if the tensor has the memory that it had, and the shape."""
        now, place = self.tensor, self.place
        return (now.data_ptr(), now.shape, now.stride()) == (place.data_ptr(), place.shape, place.stride())


def _bits(values: Tensor) -> Tensor:
    """Look at values as whole numbers of 8 bytes, where they can be, which compare faster."""
    even = values.nbytes % 8 == 0 and values.storage_offset() * values.element_size() % 8 == 0
    plain = values.is_floating_point() and values.is_contiguous()
    return values.view(-1).view(torch.int64) if even and plain else values


def eagerly() -> Any:
    """Return a context in which compiled networks run without their compiled code."""
    # Only a compiled network has imported the compiler, which takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo.eval_frame" in sys.modules else nullcontext()


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the network that torch.compile or DDP was given."""
    while _is_wrapper(model):
        model = getattr(model, "_orig_mod", None) or model.module  # type: ignore[assignment]
    return model


def is_compiled(module: nn.Module) -> bool:
    """Return True if torch.compile was given a module, to wrap or in place."""
    return _is_compilers(module) or module._compiled_call_impl is not None


def _is_wrapper(model: nn.Module) -> bool:
    return _is_compilers(model) or isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)


def _is_compilers(module: nn.Module) -> bool:
    # Looked up among what is imported: a compiled network has imported the compiler, which takes seconds.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return compiler is not None and isinstance(module, compiler.OptimizedModule)
