"""Carry channel weights from the point that computed them to the points that use them again.

Within a call of a stage the weights lent last wait in one slot, with the name of their lender: one that a network skips
lends nothing, and its borrower is not to take another's. The slot belongs to the running thread, so that two threads
never meet, and is empty again when the call ends. Activation checkpointing runs a block of the stage on its
own, once more and perhaps on another thread: for that, the weights ride on the map that goes from block to block, as an
attribute of the tensor, and live as long as it does. torch.compile follows both, slot and attribute; in graphs of
torch.fx the weights are values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from csham.ops.tracing import exporting

__all__ = ["ChannelWeightTransfer"]

_TRACED = "_csham_lent"
_numbers = count()

_Lent = tuple[str, Tensor]  # the lender's name, and its weights
_Slot = tuple[tuple[nn.Module | None, ...], _Lent | None]
_EMPTY: _Slot = ((), None)


class ChannelWeightTransfer:
    """The channel weights in flight within one stage."""

    def __init__(self) -> None:
        # torch.compile follows threading.local; a ContextVar it would not.
        self._local = threading.local()
        self._attribute = f"_csham_lent_{next(_numbers)}"

    def __reduce__(self) -> tuple[type[ChannelWeightTransfer], tuple[()]]:
        # A copied or pickled network starts with nothing in flight, and shares nothing with the original.
        return ChannelWeightTransfer, ()

    def lend(self, lender: str, weights: Tensor) -> None:
        """Make ``weights``, (B, C), those that :meth:`borrow` returns until the stage ends or another point lends."""
        running, _ = self._slot
        if running:
            self._slot = running, (lender, weights)

    def borrow(self, borrower: str, lender: str) -> Tensor:
        """Return the weights that were lent last, (B, C), if ``lender`` lent them.

        Raises:
            RuntimeError: The lender did not run before, in this forward pass.
        """
        _, lent = self._slot
        if lent is None or lent[0] != lender:
            raise RuntimeError(
                f"{borrower} applies the channel weights of {lender}, which are not at hand. The two must run in one "
                "forward pass. If the network skips blocks (stochastic depth, LayerDrop), use another strategy, such "
                "as 'sequential'. Under activation checkpointing use use_reentrant=False and let each checkpointed "
                "part begin at a block, or checkpoint whole stages."
            )
        return lent[1]

    def alone(self, run: Callable[[], Tensor], lent: _Lent | None = None) -> tuple[Tensor, Tensor | None]:
        """Call what lends or borrows as if a stage held nothing else.

        Args:
            run: Function to call.
            lent: The weights that are lent to it, and by whom.

        Returns:
            Result of ``run``, and the weights that it lent.
        """
        around = self._slot
        self._slot = (None,), lent
        try:
            y, (_, lent) = run(), self._slot
            return y, None if lent is None else lent[1]
        finally:
            self._slot = around

    def trace(self, tracer: Any, lender: str, weights: Proxy) -> None:
        """Do as :meth:`lend` where torch.fx traces: it calls the modules of a stage, but not always the stage."""
        vars(tracer).setdefault(_TRACED, {})[self, lender] = weights

    def traced(self, tracer: Any, borrower: str, lender: str) -> Proxy:
        """Do as :meth:`borrow` where torch.fx traces."""
        weights = vars(tracer).get(_TRACED, {}).get((self, lender))
        if weights is None:
            raise RuntimeError(
                f"{borrower} applies the channel weights of {lender}, which are not at hand: this tracer of torch.fx "
                f"did not look into {lender}. Leave it out of the tracer's leaf modules."
            )
        return weights

    @staticmethod
    def owns(hook: Any) -> bool:
        """Return True if a hook belongs to a transfer."""
        return isinstance(hook, partial) and hook.func in (_enter, _leave)

    def surround(self, module: nn.Module, *, hands_on: bool) -> None:
        """Let the weights live as long as a call of ``module``, the stage or a part of it, unless more is around it.

        Args:
            module: The stage, or a block that may be run on its own.
            hands_on: True if what follows on the module's output borrows weights.
        """
        module.register_forward_pre_hook(partial(_enter, self), with_kwargs=True)
        module.register_forward_hook(partial(_leave, self, hands_on), always_call=True)

    @property
    def _slot(self) -> _Slot:
        """Modules under way that hold the stage's points, one within the other; and what was lent last."""
        return getattr(self._local, "slot", _EMPTY)

    @_slot.setter
    def _slot(self, slot: _Slot) -> None:
        self._local.slot = slot

    def _hand_on(self, output: Any, lent: _Lent | None) -> None:
        """Let weights ride on what a block puts out."""
        if lent is not None and not exporting():
            for tensor in _tensors(output):
                setattr(tensor, self._attribute, lent)

    def _note(self, args: tuple[Any, ...], lent: _Lent | None) -> None:
        """Let the values of weights ride on what a block is given, if it may be run again for its backward pass."""
        if lent is None or not _may_be_run_again():
            return
        lender, weights = lent
        # Without their graph, which may hold that very tensor: the two would keep each other alive.
        values = weights.detach().requires_grad_(weights.requires_grad)
        for tensor in _tensors(args):
            riding = self._riding_on(tensor)
            if riding is None or riding[1] is not weights:
                setattr(tensor, self._attribute, (lender, values))

    def _take(self, args: tuple[Any, ...]) -> _Lent | None:
        """Return the weights that ride on what a block is given."""
        riding = [self._riding_on(tensor) for tensor in _tensors(args)]
        known = [lent for lent in riding if lent is not None]
        return known[0] if known else None

    def _riding_on(self, tensor: Tensor) -> _Lent | None:
        return getattr(tensor, self._attribute, None)


# Hooks are functions of the module level, bound by partial, so that a deep copy of the network binds its own transfer.


def _enter(
    transfer: ChannelWeightTransfer,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    running, lent = transfer._slot
    given = (*args, *kwargs.values())
    # A module is never within itself: what says so was left behind by Ctrl-C, for which torch calls no hooks.
    if not running or any(one is module for one in running):
        running, lent = (), transfer._take(given)
    else:
        transfer._note(given, lent)
    transfer._slot = (*running, module), lent


def _leave(
    transfer: ChannelWeightTransfer, hands_on: bool, module: nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    running, lent = transfer._slot
    if hands_on:
        transfer._hand_on(output, lent)
    transfer._slot = (running[:-1], lent) if len(running) > 1 else _EMPTY


def _may_be_run_again() -> bool:
    # What is compiled or traced is not, and functional transforms refuse requires_grad_().
    compiling = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    return torch.is_grad_enabled() and not (compiling or torch._C._are_functorch_transforms_active())


def _tensors(values: Any) -> list[Tensor]:
    """List the tensors in tuples, lists and dictionaries; torch.compile follows this."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = tuple(values.values())
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, (tuple, list)) else []
