"""The class of all operators, how they are defined, called and differentiated, and their list."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from csham.errors import UserError

__all__ = ["NAMESPACES", "OPERATORS", "Operator", "contiguous", "float32", "like", "none_if_empty", "or_zeros"]

NAMESPACES = ("csham_cpu", "csham_triton")

# By name.
OPERATORS: dict[str, Operator] = {}


class Operator:
    """One operator with its backward pass, in every namespace.

    Called with ``"cpu"`` or ``"triton"`` and its arguments, it returns a tuple with the names of its schema: in eager
    mode by an ``autograd.Function``, which costs less a call, under torch.compile by way of torch.library.

    Args:
        name: Name of its file; the backward pass is ``<name>_backward``.
        schema: Arguments and results, all of them named.
        backward_schema: The same of the backward pass.
        fake: Results without data, from the arguments.
        backward_fake: The same of the backward pass.
        save: What the backward pass needs, from arguments and results: tensors by name, and settings by name.
        gradients: Gradients by the name of the argument, none for those left out: from the operators of the namespace,
            what was saved and the gradients of the results (None where there is none).
    """

    def __init__(
        self,
        name: str,
        schema: str,
        backward_schema: str,
        *,
        fake: Callable[..., Any],
        backward_fake: Callable[..., Any],
        save: Callable[[Any, Any], tuple[dict[str, Tensor | None], dict[str, Any]]],
        gradients: Callable[[Any, Any, Any], dict[str, Tensor | None]],
    ) -> None:
        self.name = name.rpartition(".")[2]
        self._save, self._gradients = save, gradients
        for namespace in NAMESPACES:
            _define(f"{namespace}::{self.name}", schema, fake)
            _define(f"{namespace}::{self.name}_backward", backward_schema, backward_fake)
        self._forward = {namespace: self._overload(namespace) for namespace in NAMESPACES}
        found = self._forward[NAMESPACES[0]]._schema
        self.arguments = namedtuple("Arguments", [one.name for one in found.arguments])  # type: ignore[misc]
        self.results = namedtuple("Results", [one.name for one in found.returns])  # type: ignore[misc]
        self._no_gradients: dict[str, Tensor | None] = dict.fromkeys(one.name for one in found.arguments)
        self._function = _function(self)
        for namespace in NAMESPACES:
            torch.library.register_autograd(
                f"{namespace}::{self.name}", self._backward, setup_context=partial(self._keep, namespace)
            )
        OPERATORS[self.name] = self

    def __call__(self, kernels: str, *args: Any) -> Any:
        """Run the operator by ``kernels``."""
        namespace = f"csham_{kernels}"
        if torch.compiler.is_compiling():
            found = self._forward[namespace](*args)
        elif torch.is_grad_enabled():
            found = self._function.apply(namespace, *args)
        else:
            found = self._below_autograd(namespace, args)
        return self._named(found)

    def _overload(self, namespace: str) -> Any:
        return getattr(getattr(torch.ops, namespace), self.name).default

    def _below_autograd(self, namespace: str, args: tuple[Any, ...]) -> Any:
        # Past the dispatcher's autograd, which is Python and costs more than a small kernel.
        with torch._C._AutoDispatchBelowAutograd():
            return self._forward[namespace](*args)

    def _named(self, results: Any) -> Any:
        return self.results(*results) if isinstance(results, tuple) else self.results(results)

    def _keep(self, namespace: str, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        tensors, settings = self._save(self.arguments(*inputs), self._named(output))
        ctx.save_for_backward(*tensors.values())
        ctx.kernels, ctx.saved_names, ctx.settings = getattr(torch.ops, namespace), tuple(tensors), settings

    def _backward(self, ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return self._found(ctx, tensors, grads)
        with torch.no_grad():
            found = self._found(ctx, tensors, grads)
        return _NotAgain.apply(found, *tensors, *grads)

    def _found(self, ctx: Any, tensors: Any, grads: Any) -> tuple[Tensor | None, ...]:
        saved = SimpleNamespace(**dict(zip(ctx.saved_names, tensors, strict=True)), **ctx.settings)
        found = self._gradients(ctx.kernels, saved, self.results(*grads))
        return tuple((self._no_gradients | found).values())


def like(grad: Tensor | None, x: Tensor) -> Tensor | None:
    """Give a gradient the memory format of its map."""
    if grad is None or x.is_contiguous():
        return contiguous(grad)
    if torch._C._functorch.is_batchedtensor(grad) or torch._C._functorch.is_legacy_batchedtensor(grad):
        # Under vmap, which knows no memory format.
        return grad.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return grad.contiguous(memory_format=torch.channels_last)


def contiguous(grad: Tensor | None) -> Tensor | None:
    """Lay a gradient, if there is one, as the kernels read it."""
    return None if grad is None else grad.contiguous()


def or_zeros(grad: Tensor | None, other: Tensor) -> Tensor:
    """Return a gradient, or zeros like its tensor."""
    return torch.zeros_like(other) if grad is None else grad.contiguous()


def none_if_empty(grad: Tensor, wanted: Tensor | None) -> Tensor | None:
    """Return None for the empty array that a kernel returns in the place of what does not exist."""
    return None if wanted is None or grad.numel() == 0 != wanted.numel() else grad


def float32(x: Tensor, *shape: int) -> Tensor:
    """Return a small array without data, beside a map."""
    return x.new_empty(shape, dtype=torch.float32)


def _define(operator: str, schema: str, fake: Callable[..., Any]) -> None:
    torch.library.define(operator, schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    torch.library.register_fake(operator, fake)


def _function(operator: Operator) -> type[torch.autograd.Function]:
    """Make the ``autograd.Function`` of an operator, whose first argument is the namespace."""

    class Function(torch.autograd.Function):
        # Not in two parts, with setup_context: torch would then look its signature up at every call, for 50 us.
        @staticmethod
        def forward(ctx: Any, namespace: str, *args: Any) -> Any:
            output = operator._below_autograd(namespace, args)
            operator._keep(namespace, ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *operator._backward(ctx, *grads)

    Function.__name__ = Function.__qualname__ = f"csham_{operator.name}"
    return Function


class _NotAgain(torch.autograd.Function):
    """Gradients, which cannot be differentiated by what they were made of: they would pass for constants."""

    @staticmethod
    def forward(ctx: Any, found: tuple[Tensor | None, ...], *_: Tensor | None) -> Any:
        return tuple(None if grad is None else grad.detach() for grad in found)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UserError(
            "the kernels' gradients cannot be differentiated again. Let the reference run, which can: "
            "CSHAM_KERNELS=reference in the environment, or csham.ops.use_kernels('reference') around the forward pass."
        )
