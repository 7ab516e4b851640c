"""Attentions of a user's own: a class or function of channels, under a name, with the code it comes from.

Importable without torch. :mod:`csham.own_code` finds the code and knows it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS, AttentionName
from csham.own_code import (
    NO_PAPER,
    Code,
    check_name,
    code_in,
    described,
    first_line,
    kind_of,
    readable,
    unnamed_code,
    where_from,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Attention",
    "OwnAttention",
    "code_of",
    "find_attention",
    "is_own_attention",
    "name_attention",
    "register_attention",
]

_Build: TypeAlias = "Callable[..., nn.Module]"

Attention: TypeAlias = "str | AttentionName | Callable[..., nn.Module]"
"""An attention as a user may give it: its name, or a class or function of a number of channels."""


@dataclass(frozen=True, kw_only=True)
class OwnAttention(AttentionName):
    """An attention that is not csham's.

    Attributes:
        build: Builds it for a number of channels.
        code: Where it comes from.
    """

    build: _Build
    code: Code


def register_attention(
    name: str, layer: Callable[..., nn.Module], *, summary: str = "", source: str = NO_PAPER
) -> None:
    """Give an attention of your own a name that every function of csham knows from then on.

    What it offers is seen by building one: with parts ``channel`` and ``spatial`` that have ``weights``
    (:mod:`csham.layers.attention`) it works under every strategy. The same name again replaces it.

    Args:
        name: Name, as ``"edge"``; ``"my_module:MyGate"`` is what the command line calls a class of a module.
        layer: A class or function from a number of channels to a module from (B, channels, H, W) to the same. Keywords
            ``device`` and ``dtype`` are given to it if its signature has them; without, the module is moved.
        summary: Description in a few words, for tables and model cards.
        source: Paper or place that it is from, for the same.

    Raises:
        UserError: The name is taken or cannot be one, or the layer is none.

    Examples:
        >>> csham.register_attention("edge", EdgeGate, source="Doe et al., 2025")
        >>> csham.create_model("resnet18", attention="edge")
    """
    check_name("register_attention", name, "EdgeGate")
    if not isinstance(ATTENTIONS.get(name), OwnAttention | None):
        raise UserError(f"register_attention: csham has an attention {name!r} of its own. Choose another name.")
    caller = sys._getframe(1).f_globals.get("__name__", "__main__")
    ATTENTIONS[name] = _own(name, layer, summary, source, caller)


def find_attention(attention: Attention) -> AttentionName:
    """Return the entry of an attention that was given by name, or as a class or function.

    Raises:
        UserError: An unknown name, with the nearest; code that is to be named first; or neither of all.
    """
    if isinstance(attention, AttentionName):
        return attention
    if not isinstance(attention, str):
        return _own(readable(attention), attention)
    if attention in ATTENTIONS:
        return ATTENTIONS[attention]
    if is_own_attention(attention):
        raise unnamed_code("attention", attention)
    raise unknown_name("attention", attention, ATTENTIONS)


def is_own_attention(name: str) -> bool:
    """Return True for a name such as ``my_module:MyGate``, and False for ``csham:transfer``, which has a strategy."""
    module, colon, _ = name.partition(":")
    return bool(colon) and module not in ATTENTIONS and module not in ("none", "all")


def code_of(name: str) -> Code | None:
    """Return where the code of an attention of the user's own comes from; None for csham's, and for unknown names."""
    return code_in(ATTENTIONS, name)


def name_attention(reference: str, layer: Any) -> None:
    """Let a class or function that the user named be known by those words."""
    ATTENTIONS[reference] = _own(reference, layer, first_line(layer), reference=reference)


# Channels for which one is built to see what it has; some take multiples of 16 only, or few.
_TRIED = (256, 64, 16)


def _own(
    name: str,
    layer: Any,
    summary: str = "",
    source: str = NO_PAPER,
    caller: str = "__main__",
    reference: str | None = None,
) -> OwnAttention:
    """Build one to see what it has, without drawing numbers that the caller would draw, and make its entry."""
    import torch  # noqa: PLC0415  names are looked up without it

    from csham.layers.attention import parts_of  # noqa: PLC0415

    if isinstance(layer, torch.nn.Module):
        raise UserError(
            f"{name} is a module, and one for every point would share its weights. Give its class, or a function of "
            f"channels that makes one: lambda channels: {type(layer).__name__}(channels)."
        )
    if not callable(layer):
        raise UserError(f"an attention is a name, or a class or function of channels, got {layer!r}.")
    with torch.random.fork_rng(devices=[]):
        built, channels = _built(name, layer, torch.nn.Module)
    code = where_from(layer, caller, reference)
    _refuse_lazy(f"{name}({channels})", built)
    two_part = parts_of(built) is not None
    return OwnAttention(
        name,
        summary or "an attention of the user's own",
        source,
        layer=code.reference,
        formula="",
        params=sum(p.numel() for p in built.parameters()) if channels == _TRIED[0] else 0,
        maps=("channel", "spatial") if two_part else (),
        two_part=two_part,
        opens=callable(getattr(built, "open_gates", None)),
        build=layer,
        code=code,
    )


def _built(name: str, layer: Any, module: type) -> tuple[Any, int]:
    failures = []
    for channels in _TRIED:
        try:
            built = layer(channels)
        except Exception as err:
            failures.append(err)
            continue
        if not isinstance(built, module):
            raise UserError(f"{name}({channels}) returned {kind_of(built)}, and an attention is an nn.Module.")
        return built, channels
    raise UserError(
        f"{name}({_TRIED[0]}) failed: {described(failures[0])}. An attention is a class or function of a number of "
        "channels; what else it needs goes into a function: lambda channels: MyGate(channels, size=7)."
    ) from failures[0]


def _refuse_lazy(called: str, built: Any) -> None:
    from torch.nn.parameter import is_lazy  # noqa: PLC0415

    lazy = [path for path, part in built.named_modules() if any(map(is_lazy, part.parameters(recurse=False)))]
    if lazy:
        raise UserError(
            f"{called} has a layer whose size its first pass decides: {lazy[0] or 'itself'}. Build it from the "
            "channels: nn.Conv2d(channels, ...) for nn.LazyConv2d(...)."
        )
