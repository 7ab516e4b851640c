"""timm's and torchvision's networks: with their published weights, and timm's with other channels or layers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import timm
import timm.models
import torch
import torchvision.models
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from timm.models import efficientnet, vgg
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from csham.backbones.scale import Scale
from csham.backbones.weights import put_weights
from csham.errors import UserError

__all__ = ["scaled_timm_network", "timm_depth", "timm_network", "torchvision_network"]

# Seconds until a host that does not answer counts as out of reach.
_PATIENCE_S = 10

# Channels divide by this, which every number of groups among these networks does too once a block has narrowed them.
_DIVISOR = 8


def timm_network(name: str, num_classes: int, in_chans: int, *, pretrained: bool = False) -> nn.Module:
    """Build a network of timm's.

    Args:
        name: In timm, perhaps with a pretrained tag.
        num_classes: Width of the logits; other than the weights', the classifier starts with new ones.
        in_chans: Channels of the images; the pretrained first convolution is converted.
        pretrained: Load the weights that timm names.

    Raises:
        UserError: There are no weights, or they are out of reach.
    """
    overlay = _timm_weights(name) if pretrained else None
    try:
        return timm.create_model(
            name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=num_classes, in_chans=in_chans
        )
    except OSError as err:
        raise _unreachable(name, "", err) from err
    except (RuntimeError, TypeError, ValueError, AssertionError) as err:
        raise UserError(f"timm cannot build {name} for {in_chans} channels and {num_classes} classes: {err}") from err


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


def torchvision_network(name: str, num_classes: int, in_chans: int, *, pretrained: bool = False) -> nn.Module:
    """Build a classifier of torchvision's that returns logits alone, in training too.

    Args:
        name: In torchvision.
        num_classes: Width of the logits; other than 1000, the classifier starts with new weights.
        in_chans: Channels of the images; the first convolution is converted from three.
        pretrained: Load torchvision's default weights.

    Raises:
        UserError: There are no weights, or they are out of reach.
    """
    if num_classes < 1:
        raise UserError(f"torchvision/{name} needs at least one class, got num_classes={num_classes}.")
    model = torchvision.models.get_model(name, num_classes=num_classes, **_settings(name, in_chans))
    if pretrained:
        put_weights(model, _torchvision_weights(name), f"the pretrained weights do not fit {name}", 3)
    if in_chans != 3:
        _convert_first_convolution(model, in_chans)
    return model


def _timm_weights(name: str) -> dict[str, Any]:
    """Find or download the weights; timm alone would try for a minute where there is no network."""
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {name}. Leave pretrained=False (--no-pretrained).")
    if not config.hf_hub_id:
        return {}
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    cached = [try_to_load_from_cache(config.hf_hub_id, file) for file in names]
    file = next((path for path in cached if isinstance(path, str)), None)
    if file is None:
        try:
            published = HfApi().model_info(config.hf_hub_id, timeout=_PATIENCE_S).siblings or []
            there = {file.rfilename for file in published}
            file = hf_hub_download(config.hf_hub_id, next((n for n in names if n in there), names[0]))
        except Exception as err:  # whatever the hub's client raises means the same
            raise _unreachable(name, f", {names[0]} of {config.hf_hub_id} on the Hugging Face hub", err) from err
    return {"file": file, "custom_load": bool(config.custom_load)}


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    published = list(torchvision.models.get_model_weights(name))
    if not published:
        raise UserError(f"torchvision has no pretrained weights for {name}. Leave pretrained=False (--no-pretrained).")
    weights = getattr(torchvision.models.get_model_weights(name), "DEFAULT", published[-1])
    try:
        with _impatient():
            return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as err:
        raise _unreachable(name, f", {weights.url}", err) from err


@contextmanager
def _impatient() -> Iterator[None]:
    """torch.hub sets no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unreachable(name: str, source: str, err: Exception) -> UserError:
    networks = (e for e in _causes(err) if isinstance(e, (socket.gaierror, ConnectionError, TimeoutError)))
    said = str(next(networks, getattr(err, "reason", "")) or err) or type(err).__name__
    reason = shorten(said, 100, placeholder=" ...")
    return UserError(
        f"the pretrained weights of {name} could not be reached ({reason}). With a local copy of them{source}: "
        "weights_file=FILE (--weights-file FILE)."
    )


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: clients put the system's words into several of their own."""
    while err is not None:
        yield err
        err = err.__cause__ or err.__context__


def _settings(name: str, in_chans: int) -> dict[str, Any]:
    if name not in ("googlenet", "inception_v3"):
        return {}
    # Their weights expect this change of the input's range. It is in no state dict, so it must not depend on whether
    # weights are loaded; it exists for three channels only.
    return {"aux_logits": False, "init_weights": True, "transform_input": in_chans == 3}


def _convert_first_convolution(model: nn.Module, in_chans: int) -> None:
    """Let the first convolution take other channels, by summing or repeating its weights as timm does."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(timm.models.adapt_input_conv(in_chans, first.weight.detach()))
    first.in_channels = in_chans


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
        published = [info["num_chs"] // expansion for info in model.feature_info[-4:]]
        # A ResNeXt's groups divide a block's channels only if these divide by 16.
        settings["channels"] = tuple(_rounded(channels * scale.width, 2 * _DIVISOR) for channels in published)
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
    layers, per_block = timm_depth(name)
    more, rest = divmod(depth - layers, per_block)
    if rest or blocks + more < 1:
        least = layers - per_block * (blocks - 1)
        below = max(least, depth - rest)
        raise UserError(
            f"{name}@depth={depth}: it has {layers} layers, and a block has {per_block}, so {below} or "
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
