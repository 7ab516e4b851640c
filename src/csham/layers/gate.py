"""Base class of the layers that multiply a map by weights."""

from __future__ import annotations

from torch import Tensor, nn

from csham import ops
from csham.layers.checks import check_channels, check_input
from csham.layers.opaque import Opaque

__all__ = ["Gate"]


class Gate(Opaque, nn.Module):
    """Base of attentions that scale a map: ``y = weights(x) ⊙ x``.

    A subclass computes :meth:`weights`; :meth:`forward` calls it through the instance, so that
    :func:`csham.layers.record_weights` sees what was used.

    Args:
        channels: Channels of the feature map.

    Shape:
        (B, channels, H, W) to the same, any H, W >= 1; dtype and memory format are kept.

    Raises:
        UserError: A number of channels or an input that cannot work; a ``ValueError``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_channels(type(self).__name__, channels)
        self.channels = channels

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights of ``x``: (B, C), (B, 1, H, W) or (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``, (B, C, H, W)."""
        return ops.scale(x, self.weights(x))

    def extra_repr(self) -> str:
        """Name the setting that the children do not show."""
        return f"channels={self.channels}"

    def _check(self, x: Tensor) -> None:
        check_input(type(self).__name__, x, self.channels)
