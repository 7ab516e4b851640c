"""Attentions of a user's own: a class or function of channels, under a name, with the code it comes from.

Importable without torch. :mod:`csham.own_code` finds the code and knows it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS, AttentionName
from csham.own_code import (
    NO_PAPER,
    Code,
    check_name,
    code_in,
    first_line,
    readable,
    unnamed_code,
    where_from,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Attention",
    "OwnAttention",
    "as_built",
    "code_of",
    "find_attention",
    "is_own_attention",
    "name_attention",
    "register_attention",
    "try_attention",
]

_Build: TypeAlias = "Callable[..., nn.Module]"

Attention: TypeAlias = "str | AttentionName | Callable[..., nn.Module]"
"""An attention as a user may give it: its name, or a class or function of a number of channels."""


@dataclass(frozen=True, kw_only=True)
class OwnAttention(AttentionName):
    """An attention that is not csham's; what it has, such as parts, counts once one was built (:func:`try_attention`).

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
    ATTENTIONS[name] = _tried(_own(name, layer, summary, source, caller))


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
    ATTENTIONS[reference] = _tried(_own(reference, layer, first_line(layer), reference=reference))


def try_attention(entry: AttentionName, channels: int, settings: Mapping[str, Any]) -> AttentionName:
    """Build one attention of the user's own to see what it has, without drawing numbers that the caller would draw.

    Returns:
        Its entry with that; csham's own as it was given.

    Raises:
        UserError: It cannot be built for these channels and settings, or is no attention.
    """
    if not isinstance(entry, OwnAttention):
        return entry
    import torch  # noqa: PLC0415  names are looked up without it

    from csham.layers.create import create_attention  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        return as_built(entry, create_attention(entry, channels, **settings))


def as_built(entry: AttentionName, built: nn.Module) -> AttentionName:
    """Return the entry of an attention, of the user's own with the parts and methods of one that was built."""
    if not isinstance(entry, OwnAttention):
        return entry
    from csham.layers.attention import parts_of  # noqa: PLC0415

    two_part = parts_of(built) is not None
    return replace(
        entry,
        params=sum(p.numel() for p in built.parameters()),
        maps=("channel", "spatial") if two_part else (),
        two_part=two_part,
        opens=callable(getattr(built, "open_gates", None)),
    )


# Channels for which one is built where no network says how many; some take multiples of 16 only, or few.
_TRIED = (256, 64, 16)


def _tried(entry: OwnAttention) -> AttentionName:
    failures = []
    for channels in _TRIED:
        try:
            seen = try_attention(entry, channels, {})
        except UserError as err:
            failures.append(err)
            continue
        return seen if channels == _TRIED[0] else replace(seen, params=0)
    raise failures[0]


def _own(
    name: str,
    layer: Any,
    summary: str = "",
    source: str = NO_PAPER,
    caller: str = "__main__",
    reference: str | None = None,
) -> OwnAttention:
    import torch  # noqa: PLC0415  names are looked up without it

    if isinstance(layer, torch.nn.Module):
        raise UserError(
            f"{name} is a module, and one for every point would share its weights. Give its class, or a function of "
            f"channels that makes one: lambda channels: {type(layer).__name__}(channels)."
        )
    if not callable(layer):
        raise UserError(f"an attention is a name, or a class or function of channels, got {layer!r}.")
    code = where_from(layer, caller, reference)
    return OwnAttention(
        name,
        summary or "an attention of the user's own",
        source,
        layer=code.reference,
        formula="",
        params=0,
        maps=(),
        two_part=True,  # until one is built, as its gates open
        build=layer,
        code=code,
    )
