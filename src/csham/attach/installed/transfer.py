"""Carry channel weights from the point that computed them to the points that use them again.

The weights of one forward pass live on a stack that belongs to the running thread, opened and closed by hooks on the
modules around the points of a stage, so that nothing outlives the pass and two threads never meet. Activation
checkpointing runs a block again, alone and perhaps on another thread: for that, the tensors that enter and leave a
block are remembered, weakly, with the weights that belonged to them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ChannelWeightTransfer"]

_TRACED = "_csham_lent"


class ChannelWeightTransfer:
    """The channel weights in flight within one stage."""

    def __init__(self) -> None:
        # torch.compile follows threading.local; a ContextVar it would not.
        self._local = threading.local()
        self._of_tensor = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[type[ChannelWeightTransfer], tuple[()]]:
        # A copied or pickled network starts with nothing in flight, and shares nothing with the original.
        return ChannelWeightTransfer, ()

    def lend(self, weights: Tensor) -> None:
        """Make ``weights``, (B, C), those that :meth:`borrow` returns until the stage ends."""
        stack = self._stack
        if stack:
            self._stack = (*stack[:-1], weights)

    def borrow(self, borrower: str, lender: str) -> Tensor:
        """Return the weights that were lent last, (B, C).

        Raises:
            RuntimeError: The lender did not run before, in this forward pass.
        """
        stack = self._stack
        if not stack or stack[-1] is None:
            raise RuntimeError(
                f"{borrower} applies the channel weights of {lender}, which are not at hand. The two must run in one "
                "forward pass. Under activation checkpointing use use_reentrant=False and let each checkpointed part "
                "begin at a block, or checkpoint whole stages."
            )
        return stack[-1]

    def alone(self, run: Callable[[], Tensor], weights: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Call what lends or borrows as if a stage held nothing else.

        Args:
            run: Function to call.
            weights: Those that are lent to it.

        Returns:
            Result of ``run``, and the weights that it lent.
        """
        self._stack = (*self._stack, weights)
        try:
            return run(), self._stack[-1]
        finally:
            self._stack = self._stack[:-1]

    def trace(self, tracer: Any, weights: Proxy) -> None:
        """Do as :meth:`lend` where torch.fx traces: it calls the modules of a stage, but not always the stage."""
        vars(tracer).setdefault(_TRACED, {})[self] = weights

    def traced(self, tracer: Any, borrower: str, lender: str) -> Proxy:
        """Do as :meth:`borrow` where torch.fx traces."""
        weights = vars(tracer).get(_TRACED, {}).get(self)
        if weights is None:
            raise RuntimeError(
                f"{borrower} applies the channel weights of {lender}, which are not at hand: this tracer of torch.fx "
                f"did not look into {lender}. Leave it out of the tracer's leaf modules."
            )
        return weights

    @staticmethod
    def owns(hook: Any) -> bool:
        """Return True if a hook belongs to a transfer."""
        return isinstance(hook, partial) and hook.func in (_enter, _leave_stage, _leave_block)

    def surround_stage(self, module: nn.Module) -> None:
        """Let the weights live, at most, as long as a call of ``module`` lasts."""
        module.register_forward_pre_hook(partial(_enter, self))
        module.register_forward_hook(partial(_leave_stage, self), always_call=True)

    def surround_block(self, module: nn.Module) -> None:
        """Let ``module``, a part of the stage, be run on its own, as activation checkpointing does."""
        module.register_forward_pre_hook(partial(_enter, self))
        module.register_forward_hook(partial(_leave_block, self), always_call=True)

    @property
    def _stack(self) -> tuple[Tensor | None, ...]:
        return getattr(self._local, "stack", ())

    @_stack.setter
    def _stack(self, stack: tuple[Tensor | None, ...]) -> None:
        self._local.stack = stack

    def _remember(self, tensors: Any, weights: Tensor | None) -> None:
        if weights is None or torch.compiler.is_compiling():
            return
        for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
            if isinstance(tensor, Tensor):
                self._of_tensor[tensor] = weights

    def _recall(self, tensors: tuple[Any, ...]) -> Tensor | None:
        if torch.compiler.is_compiling():
            return None
        known = (self._of_tensor.get(tensor) for tensor in tensors if isinstance(tensor, Tensor))
        return next((weights for weights in known if weights is not None), None)


# Hooks are functions of the module level, bound by partial, so that a deep copy of the network binds its own transfer.


def _enter(transfer: ChannelWeightTransfer, module: nn.Module, args: tuple[Any, ...]) -> None:
    stack = transfer._stack
    weights = stack[-1] if stack else transfer._recall(args)
    transfer._remember(args, weights)
    transfer._stack = (*stack, weights)


def _leave_stage(transfer: ChannelWeightTransfer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    transfer._stack = transfer._stack[:-1]


def _leave_block(transfer: ChannelWeightTransfer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    outer, weights = transfer._stack[:-1], transfer._stack[-1]
    transfer._remember(output, weights)
    transfer._stack = (*outer[:-1], weights) if outer else ()
