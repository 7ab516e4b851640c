"""Squeeze-and-excitation and its relatives as timm and torchvision write them, on the kernels.

Each class is theirs with another ``forward`` and nothing more: the same attributes, parameters and state_dict keys, so
that a module of theirs becomes one of these by changing its class (:func:`csham.accelerate`). Where no kernels run, and
where torch.fx traces, their own ``forward`` runs.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm import layers as timm_layers
from timm.layers.cbam import (
    CbamModule,
    ChannelAttn,
    LightCbamModule,
    LightChannelAttn,
    LightSpatialAttn,
    SpatialAttn,
)
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import senet
from torch import Tensor, nn
from torchvision.ops import misc as torchvision_misc

from csham import ops
from csham.layers.attention import Fused
from csham.layers.cbam import CBAMChannel, CBAMSpatial, CBAMSteps, LightCBAMChannel, LightCBAMSpatial
from csham.layers.opaque import Unscriptable
from csham.module_class import change_class
from csham.ops.calls import has_hooks, is_bare

__all__ = [
    "AcceleratedCecaModule",
    "AcceleratedEcaModule",
    "AcceleratedEffectiveSEModule",
    "AcceleratedSEModule",
    "accelerate_layer",
]


class ChannelScaling(Unscriptable, Fused):
    """Base class put before a third-party layer: ``y = w ⊙ x``, ``w`` made from the averages of the channels.

    Attributes:
        add_maxpool: True if the averages are averaged with the maxima first.
    """

    add_maxpool: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``, (B, C, H, W)."""
        return self._scaled(x) if self._on_kernels(x) else super().forward(x)  # type: ignore[misc]

    def attend(self, x: Tensor, shortcut: Tensor | None = None, *, source: ops.Source | None = None) -> Tensor:
        """Scale the channels of ``x``, and end a residual block if wanted.

        Args:
            x: (B, C, H, W).
            shortcut: If given, a map like ``x``, and the result is ``relu(w ⊙ x + shortcut)``.
            source: As for :meth:`Fused.attend`.
        """
        # A forward hook of the layer sees it called, and what it returns.
        layer: Any = self
        if has_hooks(layer) or not self._on_kernels(x):
            return ops.finish(layer(x), shortcut)
        return self._scaled(x, shortcut, source)

    def _on_kernels(self, x: Tensor) -> bool:
        return ops.has_kernels(x)

    def _scaled(self, x: Tensor, shortcut: Tensor | None = None, source: ops.Source | None = None) -> Tensor:
        pooled = ops.pool_channels(x, self.add_maxpool, source)
        squeezed = pooled.mean if pooled.max is None else 0.5 * pooled.mean + 0.5 * pooled.max
        # In the type of the map, which is what the layers are given where there are no kernels.
        weights = self._excite(squeezed.to(x.dtype))
        return pooled.scale(weights.reshape(x.shape[:2]), shortcut)

    def _excite(self, squeezed: Tensor) -> Tensor:
        """Return the weights, B times C values, for the pooled channels, (B, C)."""
        raise NotImplementedError


class AcceleratedSEModule(ChannelScaling, timm_layers.SEModule):
    """timm's ``SEModule``."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        hidden = self.act(self.bn(self.fc1(squeezed[:, :, None, None])))
        return self.gate(self.fc2(hidden))


class AcceleratedEffectiveSEModule(ChannelScaling, timm_layers.EffectiveSEModule):
    """timm's ``EffectiveSEModule``."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.gate(self.fc(squeezed[:, :, None, None]))


class AcceleratedEcaModule(ChannelScaling, timm_layers.EcaModule):
    """timm's ``EcaModule``, with or without its hidden layer."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        y = self.conv(squeezed[:, None])  # (B, 1 or hidden, C)
        return self.gate(y if self.conv2 is None else self.conv2(self.act(y)))


class AcceleratedCecaModule(ChannelScaling, timm_layers.CecaModule):
    """timm's ``CecaModule``."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.gate(self.conv(F.pad(squeezed[:, None], (self.padding, self.padding), mode="circular")))


class AcceleratedSqueezeExcite(ChannelScaling, efficientnet.SqueezeExcite):
    """The ``SqueezeExcite`` of timm's EfficientNets and MobileNets."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.gate(self.conv_expand(self.act1(self.conv_reduce(squeezed[:, :, None, None]))))


class AcceleratedSENetModule(ChannelScaling, senet.SEModule):
    """The ``SEModule`` of timm's original SENets."""

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.sigmoid(self.fc2(self.relu(self.fc1(squeezed[:, :, None, None]))))


class AcceleratedSqueezeExcitation(ChannelScaling, torchvision_misc.SqueezeExcitation):
    """torchvision's ``SqueezeExcitation``."""

    def _on_kernels(self, x: Tensor) -> bool:
        pool = self.avgpool
        plain = is_bare(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))
        return plain and super()._on_kernels(x)

    def _excite(self, squeezed: Tensor) -> Tensor:
        return self.scale_activation(self.fc2(self.activation(self.fc1(squeezed[:, :, None, None]))))


class AcceleratedCbamModule(CBAMSteps, CbamModule):
    """timm's ``CbamModule``."""


class AcceleratedLightCbamModule(CBAMSteps, LightCbamModule):
    """timm's ``LightCbamModule``."""


class _AcceleratedBatchNormAct2d(timm_layers.BatchNormAct2d):
    """timm's norm with an activation, which tells the kernels of the spatial gate whether it is a norm alone."""

    @property
    def is_plain_batch_norm(self) -> bool:
        """True if nothing follows the norm."""
        return all(is_bare(after, nn.Identity) for after in (self.drop, self.act))


def accelerate_layer(module: nn.Module) -> str | None:
    """Make a layer of timm's or torchvision's one of these, if it is of a class that is known here.

    Returns:
        The attention's name in the zoo, or None where the layer stays what it is.
    """
    kind = type(module)
    # A forward of its own is third-party code, and goes on being called.
    if kind not in _BECOMES or "forward" in vars(module):
        return None
    name, accelerated = _BECOMES[kind]
    change_class(module, accelerated)
    norm: Any = getattr(getattr(module, "conv", None), "bn", None)
    if type(norm) is timm_layers.BatchNormAct2d:
        change_class(norm, _AcceleratedBatchNormAct2d)
    return "ecam" if name == "eca" and module.conv2 is not None else name


_BECOMES: dict[type[nn.Module], tuple[str, type[nn.Module]]] = {
    timm_layers.SEModule: ("se", AcceleratedSEModule),
    efficientnet.SqueezeExcite: ("se", AcceleratedSqueezeExcite),
    senet.SEModule: ("se", AcceleratedSENetModule),
    torchvision_misc.SqueezeExcitation: ("se", AcceleratedSqueezeExcitation),
    timm_layers.EffectiveSEModule: ("ese", AcceleratedEffectiveSEModule),
    timm_layers.EcaModule: ("eca", AcceleratedEcaModule),
    timm_layers.CecaModule: ("ceca", AcceleratedCecaModule),
    CbamModule: ("cbam", AcceleratedCbamModule),
    ChannelAttn: ("cbam", CBAMChannel),
    SpatialAttn: ("cbam", CBAMSpatial),
    LightCbamModule: ("lcbam", AcceleratedLightCbamModule),
    LightChannelAttn: ("lcbam", LightCBAMChannel),
    LightSpatialAttn: ("lcbam", LightCBAMSpatial),
}
