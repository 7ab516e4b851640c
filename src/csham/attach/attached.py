"""The module that sits at an attachment point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csham import ops
from csham.attach.transfer import ChannelWeightTransfer

__all__ = ["Attached"]


class Attached(nn.Module):
    """An attention at one point of a network, with its gate and its part in the transfer of channel weights.

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
        self.attention = attention
        self.lends = lends
        self.borrows = borrows
        self.lender = lender
        self.gate = nn.Parameter(torch.ones((), device=device, dtype=dtype)) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Attend to ``x``, (B, C, H, W)."""
        y = self._attend(x)
        if self.gate is None:
            return y
        gate = self.gate.to(x.dtype)
        return (1 - gate) * y + gate * x

    def _attend(self, x: Tensor) -> Tensor:
        if self.borrows is not None:
            x = ops.scale(x, self.borrows.borrow(self.name, str(self.lender)))
        if self.lends is None:
            return self.attention(x)
        weights = self.attention.weights(x)  # type: ignore[operator]
        self.lends.lend(weights)
        return ops.scale(x, weights)

    def extra_repr(self) -> str:
        """Say what the children do not show."""
        roles = ["gated"] if self.gate is not None else []
        roles += ["lends its channel weights"] if self.lends is not None else []
        roles += [f"applies the channel weights of {self.lender} first"] if self.borrows is not None else []
        return ", ".join(roles)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update({prefix + key: value for key, value in self.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
