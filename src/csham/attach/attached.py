"""The module that sits at an attachment point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csham import ops
from csham.attach.transfer import ChannelWeightTransfer

__all__ = ["Attached", "attend", "attends"]


class Attached(nn.Module):
    """An attention at one point of a network, with its connection, its gate and its part in the transfer of weights.

    Without a gate ``y = attention(x)``; with one ``y = (1 - θ) attention(x) + θ x``, ``θ`` starting at 1, so that the
    network computes what it did before until training lets attention in. A point that lends hands its channel weights
    on; one that borrows applies those first: ``y = attention(w ⊙ x)``.

    A state_dict that has no entry at all for this module, such as the plain network's, is accepted and leaves it as it
    is; one that has only some of the entries is refused by ``strict=True`` as usual.
    """

    gate: nn.Parameter | None

    def __init__(
        self,
        name: str,
        attention: nn.Module,
        part: str = "whole",
        *,
        gated: bool = False,
        lends: ChannelWeightTransfer | None = None,
        borrows: ChannelWeightTransfer | None = None,
        lender: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.part = part
        self.attention = attention
        self.lends = lends
        self.borrows = borrows
        self.lender = lender
        # What attention_maps() wants to be told of channel weights that come from another point.
        self.on_borrowed: Callable[[Tensor], None] | None = None
        self.gate = nn.Parameter(torch.ones((), device=device, dtype=dtype)) if gated else None

    def forward(self, x: Tensor, shortcut: Tensor | None = None, *, inplace: bool = False) -> Tensor:
        """Attend to ``x``, (B, C, H, W); with a shortcut return ``relu(y + shortcut)``, the end of a residual block.

        Args:
            x: The feature map.
            shortcut: What a block adds to it; as in the block itself, of any shape and type that can be added.
            inplace: Whether the block writes the sum into ``y``, whose type it then has, whatever the shortcut's is.
        """
        y = self._attend(x)
        if self.gate is not None:
            gate = self.gate.to(x.dtype)
            y = (1 - gate) * y + gate * x
        return y if shortcut is None else self._finish(y, shortcut, inplace)

    def _finish(self, y: Tensor, shortcut: Tensor, inplace: bool) -> Tensor:
        total = y.add_(shortcut) if inplace else y + shortcut
        return total.relu_()

    def _attend(self, x: Tensor) -> Tensor:
        if self.borrows is not None:
            weights = self.borrows.borrow(self.name, str(self.lender))
            if self.on_borrowed is not None:
                self.on_borrowed(weights)
            x = ops.scale(x, weights)
        if self.lends is not None:
            weights = self.attention.weights(x)  # type: ignore[operator]
            self.lends.lend(weights)
            return ops.scale(x, weights)
        connect = _CONNECTIONS.get(self.part)
        return self.attention(x) if connect is None else connect(x, *_parts(self.attention))

    def extra_repr(self) -> str:
        """Say what the children do not show."""
        roles = [self.part] if self.part in _CONNECTIONS else []
        roles += ["gated"] if self.gate is not None else []
        roles += ["lends its channel weights"] if self.lends is not None else []
        roles += [f"applies the channel weights of {self.lender} first"] if self.borrows is not None else []
        return ", ".join(roles)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + key: value for key, value in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def attend(path: str, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Attend to what a host puts out; with the path below it where the attention lives, this is the host's hook."""
    # The module is looked up, not bound, so that a deep copy of the network uses its own.
    return host.get_submodule(path)(output)


def attends(hook: Any) -> bool:
    """Whether a hook is :func:`attend`."""
    return isinstance(hook, partial) and hook.func is attend


# The ways to connect two parts that differ from how an attention's authors do: a map, channel part, spatial part.


def _reversed(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    return channel(spatial(x))


def _parallel(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    return ops.scale(ops.scale(x, channel.weights(x)), spatial.weights(x))


def _reapply(x: Tensor, channel: Any, spatial: Any) -> Tensor:
    weights = channel.weights(x)
    return ops.scale(spatial(ops.scale(x, weights)), weights)


_CONNECTIONS = {"reversed": _reversed, "parallel": _parallel, "reapply": _reapply}


def _parts(attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    return attention.get_submodule("channel"), attention.get_submodule("spatial")
