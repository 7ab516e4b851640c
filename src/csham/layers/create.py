"""create_attention: an attention layer by its name, or of the user's own class or function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from csham.errors import UserError
from csham.layers.names import AttentionName, check_opens
from csham.layers.own import Attention, OwnAttention, as_built, find_attention
from csham.own_code import described, kind_of

__all__ = ["create_attention"]


def create_attention(name: Attention, channels: int, *, open_gates: bool = False, **settings: Any) -> nn.Module:
    """Build an attention layer.

    Args:
        name: One of ``csham list attentions``, a name of :func:`csham.register_attention`, or a class or function
            of a number of channels.
        channels: Channels of the feature map it will see.
        open_gates: Let its weights start near 1, by a bias; one that has none before its weights gets one.
        **settings: What that layer takes, ``device`` and ``dtype`` among it.

    Returns:
        A module from (B, channels, H, W) to the same.

    Raises:
        UserError: An unknown name, a setting that the layer does not take, channels that it cannot do, or an attention
            whose weights cannot start near 1.

    Examples:
        >>> create_attention("bam", 64, reduction=8)(torch.randn(2, 64, 14, 14)).shape
        torch.Size([2, 64, 14, 14])
    """
    entry = find_attention(name)
    layer: Any = (
        _create_own(entry, channels, settings)
        if isinstance(entry, OwnAttention)
        else _create(entry, channels, settings)
    )
    if open_gates:
        check_opens(as_built(entry, layer))
        layer.open_gates()
    return layer


def _create(entry: AttentionName, channels: int, settings: dict[str, Any]) -> nn.Module:
    build = resolve_name(entry.layer)
    _check_settings(entry.name, settings, _names_taken(build))
    return build(channels, **settings)


def _create_own(entry: OwnAttention, channels: int, settings: dict[str, Any]) -> nn.Module:
    taken, anything = _signature(entry.build)
    place = {name: settings.pop(name) for name in ("device", "dtype") if name in settings and name not in taken}
    if not anything:
        _check_settings(entry.name, settings, taken)
    # Nothing is drawn where nothing is to be kept, as for a list of points.
    meta = torch.device(place.get("device") or "cpu").type == "meta"
    with torch.random.fork_rng(devices=[]) if meta else nullcontext():
        try:
            layer = entry.build(channels, **settings)
        except UserError:
            raise
        except Exception as err:
            raise UserError(
                f"{entry.name}({channels}) failed: {described(err)}. An attention is a class or function of a number "
                "of channels; what else it needs goes into a function: lambda channels: MyGate(channels, size=7)."
            ) from err
    if not isinstance(layer, nn.Module):
        raise UserError(f"{entry.name}({channels}) returned {kind_of(layer)}, and an attention is an nn.Module.")
    _refuse_lazy(f"{entry.name}({channels})", layer)
    return layer.to(**{name: value for name, value in place.items() if value is not None})


def _refuse_lazy(called: str, built: nn.Module) -> None:
    lazy = [path for path, part in built.named_modules() if any(map(is_lazy, part.parameters(recurse=False)))]
    if lazy:
        raise UserError(
            f"{called} has a layer whose size its first pass decides: {lazy[0] or 'itself'}. Build it from the "
            "channels: nn.Conv2d(channels, ...) for nn.LazyConv2d(...)."
        )


def _names_taken(build: Callable[..., nn.Module]) -> list[str]:
    fixed = build.keywords if isinstance(build, partial) else {}
    return [setting for setting in inspect.signature(build).parameters if setting not in ("channels", *fixed)]


def _signature(build: Callable[..., nn.Module]) -> tuple[list[str], bool]:
    """Return the settings that a user's own class or function takes behind the channels, and if it takes any."""
    try:
        parameters = list(inspect.signature(build).parameters.values())[1:]
    except (TypeError, ValueError):  # written in C, say
        return [], True
    kinds = inspect.Parameter
    named = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    return named, any(p.kind is kinds.VAR_KEYWORD for p in parameters)


def _check_settings(name: str, settings: Mapping[str, Any], takes: Iterable[str]) -> None:
    unknown = [setting for setting in settings if setting not in takes]
    if unknown:
        takes = ", ".join(takes) or "none"
        raise UserError(
            f"create_attention: {name} does not take these settings: {', '.join(unknown)}. It takes: {takes}."
        )
