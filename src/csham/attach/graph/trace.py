"""Run a network once and write down which value was computed from which, and which module put it out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from functools import partial
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from csham.attach.graph.kinds import other_maps
from csham.attach.graph.updates import merge_updates
from csham.attach.graph.values import CONVOLUTIONS, NORMS, SUM, Call, Trace, Value
from csham.errors import UserError
from csham.ops import use_kernels
from csham.probing import blank_image, evaluating, unchanged

__all__ = ["CONTAINERS", "trace"]

_OF_VOLUMES = frozenset({"conv3d", "conv_transpose3d"})
# What these give has its channels second, whatever is known of their input.
_CHANNELS_SECOND = (CONVOLUTIONS | NORMS | {"interpolate"}) - _OF_VOLUMES - {"linear", "layer_norm"}
_RESHAPES = frozenset({"view", "reshape", "unflatten", "unfold", "fold", "_unsafe_view", "matmul", "__matmul__", "bmm"})

_LIKE_SUMS = frozenset(
    {"sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__", "__rsub__", "rsub"}
    | {"lerp", "lerp_", "addcmul", "addcmul_"}
)

# A child more in one of these would be run as one of its layers.
CONTAINERS = (nn.Sequential, nn.ModuleDict, nn.ModuleList)

# Sides at which a network is tried, in pixels; small ones are quick, some networks need one of the others.
_SIDES = (64, 224, 32, 28, 299, 96, 128, 160, 256, 384, 512)


def trace(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Trace:
    """Run a network once, in evaluation mode and without gradients, and leave it as it was.

    Args:
        model: Any network that takes one batch of images.
        input_size: (C, H, W) of the images; by default what its convolutions say and a few common sides.

    Raises:
        UserError: It cannot be run at any of these sizes.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise UserError(f"{type(model).__name__} has lazy layers without shapes yet. Run it once on images first.")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError(f"{type(model).__name__} is scripted, and cannot be looked into. Give what it was made of.")
    failures = []
    # Attention that is in the network already: seen as plain operations, and without building kernels.
    with unchanged(model), evaluating(model), use_kernels("reference"):
        for size in _sizes(model, input_size):
            try:
                run = _record(model, blank_image(model, size))
            except Exception as err:  # any failure of a third-party network means: try the next size
                failures.append(f"{'x'.join(map(str, size))}: {' '.join(str(err).split())[:300]}")
                continue
            return _with_more_room(model, run) if input_size is None and run.is_cramped else run
    other = other_maps(type(model).__name__, model)
    if other is not None:
        raise UserError(f"attach: {other}")
    if len(taken := _inputs(model)) > 1:
        raise UserError(
            f"attach: {type(model).__name__} takes {' and '.join(taken)}, and is run here on one batch of images. "
            "Attach to a module around it whose forward takes such a batch and gives it the rest: attention is in the "
            "network itself then."
        )
    given = input_size is not None and len(_checked(input_size)) == 3
    more = "" if given else " Pass input_size=(C, H, W) of its images."
    raise UserError(
        f"attach: {type(model).__name__} could not be run to find its attachment points.{more} Where it takes "
        "something else than one batch of images, attach to the network within it that takes one, or to a module "
        f"around it whose forward does. It said, at {failures[0]}"
    )


def _with_more_room(model: nn.Module, run: Trace) -> Trace:
    """Run a network on larger images, if it takes them and its last maps are larger then than one position."""
    channels, height, width = run.values[0].shape[1:]
    try:
        larger = _record(model, blank_image(model, (channels, 4 * height, 4 * width)))
    except Exception:  # it takes no others
        return run
    return run if larger.is_cramped else larger


def _sizes(model: nn.Module, input_size: tuple[int, int, int] | None) -> list[tuple[int, ...]]:
    if input_size is not None:
        return [_checked(input_size)]
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = conv.in_channels if conv is not None else 3
    config = getattr(model, "pretrained_cfg", None) or {}
    if conv is None and other_maps(type(model).__name__, model) is not None:
        return [(channels, _SIDES[0], _SIDES[0])]  # no side helps, and 3-D convolutions of 512 pixels take seconds
    sizes: list[tuple[int, ...]] = [(channels, side, side) for side in _SIDES]
    usual = config.get("input_size") if isinstance(config, dict) else None
    return [sizes[0], tuple(usual), *sizes[1:]] if usual else sizes


def _checked(input_size: Iterable[int]) -> tuple[int, ...]:
    try:
        size = tuple(map(index, input_size))  # of other lengths too: the network says on what it works
    except TypeError:
        size = ()
    if min(size, default=0) < 1:
        raise UserError(f"attach: input_size must be (C, H, W), whole numbers from 1 on, got {input_size!r}.")
    return size


def _inputs(model: nn.Module) -> list[str]:
    """Name the inputs that a network cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in several]


def _record(model: nn.Module, images: Tensor) -> Trace:
    recorder = _Recorder(images)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            for handle in (
                module.register_forward_pre_hook(partial(recorder.enter, name)),
                module.register_forward_hook(recorder.leave),
            ):
                stack.callback(handle.remove)
        with recorder:
            output = model(images)
    known = recorder.use(list(_leaves(output)))
    merge_updates(recorder.values)
    modules = dict(model.named_modules())
    weighted = frozenset(name for name, module in modules.items() if any(True for _ in module.parameters()))
    containers = frozenset(name for name, module in modules.items() if isinstance(module, CONTAINERS))
    return Trace(recorder.values, recorder.calls, weighted, containers, tuple(sorted(known)))


def _leaves(output: Any, levels: int = 3) -> Iterator[Any]:
    """List what an output holds, in attributes too, as a dataclass does, which torch takes for a leaf."""
    for leaf in tree_leaves(output):
        yield leaf
        if levels and not isinstance(leaf, (Tensor, nn.Module, type)):
            names = [field.name for field in fields(leaf)] if is_dataclass(leaf) else getattr(leaf, "__dict__", ())
            yield from _leaves([getattr(leaf, name, None) for name in names], levels - 1)


class _Recorder(TorchFunctionMode):
    """Sees every function of tensors, and every module that is entered and left."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.running: list[int] = []
        self.index: dict[int, int] = {}  # id of a tensor: index of the value it now holds
        self._before: list[int] = []  # the number of values before each call
        self._alive: list[Tensor] = []  # an id is only good while its tensor lives
        self._handed_on: dict[int, frozenset[str]] = {}  # id of a tensor: names of the modules that handed it on
        self._add("images", (), images, "NCHW")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Before the call: an operation in place gives the very tensor that it was given.
        inputs = self._known((args, kwargs))
        layout = self._layouts(inputs)
        output = func(*args, **kwargs)
        if inputs:
            name = getattr(func, "__name__", str(func))
            targets = [args[0]] if name == "__setitem__" else tree_leaves(output)
            targets = [target for target in targets if isinstance(target, Tensor)]
            if targets:  # no shape or size
                self.use((args, kwargs))
            stacked = self._stacked(inputs, targets) if name in ("sum", "mean") else ()
            if stacked:
                name, inputs, layout = "add", stacked, self._layouts(stacked)
            elif name in _LIKE_SUMS and self._adds_maps(inputs, targets):
                name = SUM
            for tensor in targets:
                self._add(name, inputs, tensor, layout(name, tensor, args, kwargs), _filters(name, args, kwargs))
        return output

    def use(self, inputs: Any) -> tuple[int, ...]:
        """Note which modules had handed on what is used now, and return the values that it is."""
        for leaf in tree_leaves(inputs):
            if id(leaf) in self.index:
                self.values[self.index[id(leaf)]].uses.add(self._handed_on.get(id(leaf), frozenset()))
        return self._known(inputs)

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._before.append(len(self.values))
        self.calls.append(Call(name, self.running[-1] if self.running else 0))
        self.running.append(len(self.calls) - 1)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        number = self.running.pop()
        call = self.calls[number]
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf) not in self.index:
                # Computed where no function was seen, such as in a scripted function: from the module's input.
                inputs = self.use(args)
                if inputs:
                    weights = any(p.dim() > 1 for p in module.parameters())
                    layout = self._layouts(inputs)("opaque", leaf, args, {})
                    self._add("conv2d" if weights else "opaque", inputs, leaf, layout)
        if isinstance(output, Tensor) and id(output) in self.index:
            call.output = self.index[id(output)]
            self.values[call.output].hosts.append(call.name)
            if call.output < self._before[number]:
                return self._hand_on(call, output)
        return None

    def _hand_on(self, call: Call, tensor: Tensor) -> Tensor:
        """Make another tensor of one that a module gives as it was given it, so that they can be told apart."""
        with torch._C.DisableTorchFunction():
            other = tensor.view_as(tensor)
        self.index[id(other)] = self.index[id(tensor)]
        self._handed_on[id(other)] = self._handed_on.get(id(tensor), frozenset()) | {call.name}
        self._alive.append(other)
        self.values[self.index[id(tensor)]].handed_on.add(call.name)
        return other

    def _known(self, inputs: Any) -> tuple[int, ...]:
        indices = (self.index.get(id(leaf)) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        return tuple(dict.fromkeys(index for index in indices if index is not None))

    def _add(
        self, op: str, parents: tuple[int, ...], tensor: Tensor, layout: str | None, filters: tuple[int, ...] = ()
    ) -> None:
        # What integers say, such as where a pooling found its maxima, is beside the way of what is computed.
        parents = tuple(parent for parent in parents if not self._counts(parent)) or parents
        call = self.running[-1] if self.running else 0
        value = Value(len(self.values), op, parents, tuple(tensor.shape), layout, filters, call, dtype=tensor.dtype)
        self.values.append(value)
        self.index[id(tensor)] = value.index
        self._handed_on.pop(id(tensor), None)
        self._alive.append(tensor)

    def _counts(self, parent: int) -> bool:
        dtype = self.values[parent].dtype
        return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)

    def _stacked(self, inputs: tuple[int, ...], outputs: list[Tensor]) -> tuple[int, ...]:
        """Return the maps that were stacked, where a function of the stack made one map like each of them."""
        stack = self.values[inputs[0]]
        shapes = {self.values[index].shape for index in stack.parents}
        whole = len(inputs) == len(outputs) == 1 and stack.op == "stack" and len(stack.parents) > 1
        return stack.parents if whole and shapes == {tuple(outputs[0].shape)} and outputs[0].dim() == 4 else ()

    def _adds_maps(self, inputs: tuple[int, ...], outputs: list[Tensor]) -> bool:
        shape = tuple(outputs[0].shape) if outputs else ()
        return len(shape) == 4 and sum(self.values[index].shape == shape for index in inputs) > 1

    def _layouts(self, inputs: tuple[int, ...]) -> Any:
        parents = [self.values[index] for index in inputs]
        return partial(_layout, parents)


def _layout(parents: list[Value], name: str, output: Tensor, args: Any, kwargs: Any) -> str | None:
    """Say which axis is which, as far as it follows from the inputs."""
    if output.dim() == 4 and (name in _CHANNELS_SECOND or name in _OF_VOLUMES):
        return "NCHW" if name in _CHANNELS_SECOND else "CDHW"  # one volume, without a batch
    known = [p for p in parents if p.layout is not None and len(p.shape) == output.dim()]
    if not known:
        return None
    before = str(known[0].layout)
    if name == "permute":
        order = kwargs.get("dims", args[1] if len(args) == 2 else args[1:])  # x.permute(0, 2, 3, 1) or of a tuple
        return "".join(before[axis] for axis in order)
    if name in ("transpose", "swapaxes", "transpose_"):
        axes = list(before)
        one, other = args[1:3] if len(args) >= 3 else (kwargs["dim0"], kwargs["dim1"])
        axes[one], axes[other] = axes[other], axes[one]
        return "".join(axes)
    if name in ("movedim", "moveaxis") or (name in _RESHAPES and known[0].shape != tuple(output.shape)):
        return None
    return before


def _filters(name: str, args: Any, kwargs: Any) -> tuple[int, ...]:
    if name not in CONVOLUTIONS:
        return ()
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()
