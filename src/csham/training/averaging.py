"""An average of the weights over the updates, which answers in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from csham.errors import UserError
from csham.training.checkpoints import load_weights

__all__ = ["Average"]


class Average:
    """Exponential moving average of a network's weights and statistics: timm's ``ModelEmaV3``.

    The decay rises to its value as ``1 - (1 + update) ** (-2 / 3)`` does, so that a short run is averaged over its last
    part, not over its start.

    Args:
        network: On its device, before Accelerate wraps its forward, which a copy would share.
        decay: Of the average, for each update.

    Attributes:
        network: Network that has the average.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        from timm.utils import ModelEmaV3  # noqa: PLC0415  takes seconds to import

        self._average = ModelEmaV3(network, decay=decay, use_warmup=True)
        self.network: nn.Module = self._average.module.requires_grad_(False)

    def share_of(self, number: int) -> float:
        """Return the share that the weights have in the average after the update of this number, from 1."""
        return 1.0 - float(self._average.get_decay(number))

    @torch.no_grad()
    def update(self, network: nn.Module, share: Tensor) -> None:
        """Take the weights in.

        timm's ``update`` takes a number, which is another one in each step and so none that a graph can hold.

        Args:
            network: Has the weights.
            share: Of :meth:`share_of`, ().
        """
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        for mine, new in pairs:
            if mine.is_floating_point():
                mine.lerp_(new, share.to(mine, non_blocking=True))
            else:
                mine.copy_(new)

    def restore(self, weights: Mapping[str, Any] | None, what: str) -> None:
        """Go on with the average of a checkpoint.

        Raises:
            UserError: It has none, or it does not fit.
        """
        if weights is None:
            raise UserError(f"{what}: it has no average of the weights, which the run's ema asks for.")
        load_weights(self.network, weights, what)
