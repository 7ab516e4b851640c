"""timm's networks with other channels or layers than they are published with."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import efficientnet, vgg
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from csham.backbones.scale import Scale
from csham.errors import UserError

__all__ = ["scaled_timm_network", "timm_depth"]

# Channels divide by this, which every number of groups among these networks does too once a block has narrowed them.
_DIVISOR = 8


def scaled_timm_network(name: str, scale: Scale, num_classes: int, in_chans: int) -> nn.Module:
    """Build a network of timm's with another width or depth, with new weights.

    - ResNet, ResNeXt: ``width`` multiplies the channels of the four stages; layers that ``depth`` asks for are blocks
      of the third stage, as ResNet-101 has more of them than ResNet-50.
    - DenseNet: ``width`` multiplies the growth rate; layers are added to the third block.
    - MobileNetV2: ``width`` multiplies all channels, as its paper does.
    - VGG: ``width`` multiplies the channels of the convolutions.

    Args:
        name: In timm.
        scale: Width and depth to change.
        num_classes: Width of the logits.
        in_chans: Channels of the images.

    Raises:
        UserError: There is no such depth, or the network is of another kind.
    """
    settings = {"num_classes": num_classes, "in_chans": in_chans}
    plain = name.partition(".")[0]
    if plain.startswith("mobilenetv2_"):
        return _mobilenet(plain, scale.width or 1.0, settings)
    if plain.startswith("vgg"):
        return _vgg(plain, scale.width or 1.0, settings)
    model = _on_meta(plain)
    if isinstance(model, ResNet):
        return timm.create_model(plain, **_resnet(plain, model, scale), **settings)
    if isinstance(model, DenseNet):
        return timm.create_model(plain, **_densenet(plain, model, scale), **settings)
    raise UserError(f"{name}@{scale}: {type(model).__name__} has no width or depth that could be changed here.")


def timm_depth(name: str) -> tuple[int, int]:
    """Return the weight layers of a ResNet or DenseNet of timm's, and those of one more block.

    Raises:
        UserError: The network is of another kind.
    """
    model = _on_meta(name.partition(".")[0])
    if isinstance(model, ResNet):
        per_block = 3 if isinstance(model.layer1[0], Bottleneck) else 2
        return 2 + per_block * sum(map(len, _stages(model))), per_block
    if isinstance(model, DenseNet):
        return 5 + 2 * sum(_dense_layers(model)), 2
    raise UserError(f"{name}: {type(model).__name__} has no depth that could be changed here.")


def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    return model


def _stages(model: ResNet) -> list[nn.Sequential]:
    return [getattr(model, f"layer{number}") for number in range(1, 5)]


def _dense_layers(model: DenseNet) -> list[int]:
    return [len(list(getattr(model.features, f"denseblock{number}").children())) for number in range(1, 5)]


def _resnet(name: str, model: ResNet, scale: Scale) -> dict[str, Any]:
    stages = _stages(model)
    settings: dict[str, Any] = {}
    if scale.width is not None:
        expansion = stages[0][0].expansion
        own = [info["num_chs"] // expansion for info in model.feature_info[-4:]]
        # A ResNeXt's groups divide a block's channels only if these divide by 16.
        settings["channels"] = tuple(_rounded(channels * scale.width, 2 * _DIVISOR) for channels in own)
    if scale.depth is not None:
        layers = [len(stage) for stage in stages]
        layers[2] += _blocks_more(name, scale.depth, layers[2])
        settings["layers"] = tuple(layers)
    return settings


def _densenet(name: str, model: DenseNet, scale: Scale) -> dict[str, Any]:
    blocks = _dense_layers(model)
    settings: dict[str, Any] = {}
    if scale.width is not None:
        growth = model.features.denseblock1.denselayer1.conv2.out_channels
        settings["growth_rate"] = max(1, round(growth * scale.width))
    if scale.depth is not None:
        blocks[2] += _blocks_more(name, scale.depth, blocks[2])
        settings["block_config"] = tuple(blocks)
    return settings


def _blocks_more(name: str, depth: int, blocks: int) -> int:
    """Return how many blocks a stage of ``blocks`` gets, so that the network has ``depth`` layers."""
    own, per_block = timm_depth(name)
    more, rest = divmod(depth - own, per_block)
    if rest or blocks + more < 1:
        least = own - per_block * (blocks - 1)
        below = max(least, depth - rest)
        raise UserError(
            f"{name}@depth={depth}: it has {own} layers, and a block has {per_block}, so {below} or "
            f"{below + per_block} would do; at least {least}."
        )
    return more


def _mobilenet(name: str, width: float, settings: dict[str, Any]) -> nn.Module:
    digits = name.partition("_")[2]
    if not digits.isdigit():
        raise UserError(f"{name}: only MobileNetV2 as its paper scales it can be widened, such as mobilenetv2_100.")
    return efficientnet._gen_mobilenet_v2(name, channel_multiplier=int(digits) / 100 * width, **settings)


def _vgg(name: str, width: float, settings: dict[str, Any]) -> nn.Module:
    layers = vgg.cfgs[name.partition("_")[0]]
    wider = [layer if isinstance(layer, str) else _rounded(layer * width, _DIVISOR) for layer in layers]
    norm = nn.BatchNorm2d if name.endswith("_bn") else None
    return vgg.VGG(wider, norm_layer=norm, **settings)


def _rounded(channels: float, divisor: int) -> int:
    return max(divisor, round(channels / divisor) * divisor)
