"""timm's and torchvision's networks, with the number of classes and channels asked for, and their published weights."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import timm
import timm.models
import torchvision.models
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from torch import Tensor, nn

from csham.backbones.weights import put_weights
from csham.errors import UserError

__all__ = ["timm_network", "torchvision_network"]

# Seconds until a host that does not answer counts as out of reach.
_PATIENCE_S = 10


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
    found = next((path for path in cached if isinstance(path, str)), None)
    if found is None:
        try:
            published = HfApi().model_info(config.hf_hub_id, timeout=_PATIENCE_S).siblings or []
            there = {file.rfilename for file in published}
            found = hf_hub_download(config.hf_hub_id, next((n for n in names if n in there), names[0]))
        except Exception as err:  # whatever the hub's client raises means the same
            raise _unreachable(name, f", {names[0]} of {config.hf_hub_id} on the Hugging Face hub", err) from err
    return {"file": found, "custom_load": bool(config.custom_load)}


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
