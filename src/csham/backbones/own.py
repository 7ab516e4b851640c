"""Backbones of a user's own: a function or class of a number of classes, under a name, with the code it comes from.

:func:`use_code` makes known what the user named, an attention or a backbone; other processes get it by
:func:`pack_code` and :func:`unpack_code`. Importable without torch.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from csham.backbones.names import BACKBONES, LIBRARIES, BackboneName, names_in
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import name_attention
from csham.own_code import (
    NO_PAPER,
    Code,
    check_name,
    code_in,
    find_code,
    first_line,
    for_another_process,
    is_reference,
    kind_of,
    readable,
    where_from,
)

if TYPE_CHECKING:
    from torch import nn

    from csham.backbones.spec import NetworkSpec

__all__ = [
    "Backbone",
    "OwnBackbone",
    "backbone_code_of",
    "name_backbone",
    "own_backbone",
    "pack_code",
    "register_backbone",
    "unpack_code",
    "use_code",
]

Backbone: TypeAlias = "str | Callable[..., nn.Module]"
"""A backbone as a user may give it: its name, or a function or class of a number of classes."""


@dataclass(frozen=True, kw_only=True)
class OwnBackbone(BackboneName):
    """A backbone that is not csham's.

    Attributes:
        build: Builds it.
        takes: Which of ``pretrained``, ``in_chans`` and ``image_size`` it takes beside ``num_classes``.
        usual_size: Side of its images, in pixels, where its signature has one.
        code: Where it comes from.
    """

    build: Callable[..., nn.Module]
    takes: frozenset[str]
    usual_size: int | None = None
    code: Code

    @property
    def has_published_weights(self) -> bool:
        """True if it takes ``pretrained``."""
        return "pretrained" in self.takes


def register_backbone(
    name: str, factory: Callable[..., nn.Module], *, summary: str = "", source: str = NO_PAPER
) -> None:
    """Give a network of your own a name that every function of csham knows from then on as a backbone.

    The same name again replaces it.

    Args:
        name: Name, as ``"edge_net"``; ``"my_module:make_net"`` is what the command line calls a function of a module.
        factory: A function or class that takes ``num_classes`` and makes a module from images (B, 3, H, W) to logits
            (B, num_classes). If its signature has them it is also given ``pretrained`` (True or False), ``in_chans``
            (channels of the images) and ``image_size`` (their side, in pixels).
        summary: Description in a few words, for tables and model cards.
        source: Paper or place that it is from, for the same.

    Raises:
        UserError: The name is taken or cannot be one, or the factory is none.

    Examples:
        >>> csham.register_backbone("edge_net", make_net, source="Doe et al., 2025")
        >>> csham.create_model("edge_net", attention="csham", num_classes=10)
    """
    check_name("register_backbone", name, "make_net")
    if not is_reference(name) and not re.fullmatch(r"\w[\w-]*", name):
        raise UserError(f"register_backbone: {name!r}: a dot stands before a tag of pretrained weights. Leave it out.")
    if not isinstance(BACKBONES.get(name), OwnBackbone):
        _check_free(name)
    caller = sys._getframe(1).f_globals.get("__name__", "__main__")
    BACKBONES[name] = _own(name, factory, summary, source, caller)


def own_backbone(factory: Any) -> OwnBackbone:
    """Return the entry of a function or class that was given instead of a name."""
    return _own(readable(factory), factory)


def backbone_code_of(name: str) -> Code | None:
    """Return where the code of a backbone of the user's own comes from; None for others, and for unknown names."""
    return code_in(BACKBONES, name)


def name_backbone(reference: str, factory: Any) -> None:
    """Let a function or class that the user named be known by those words."""
    BACKBONES[reference] = _own(reference, factory, first_line(factory), reference=reference)


def use_code(reference: str, folder: Path | str | None = None, kind: str | None = None) -> None:
    """Import what the user named, and register it if it is an attention or a backbone.

    Args:
        reference: ``my_module:MyGate``, which gets that name; or ``my_module``, which registers what it likes.
        folder: Where the module is looked for first; None takes the working folder.
        kind: ``"attention"`` or ``"backbone"``; None takes a function or class for a backbone if it can be called with
            ``num_classes=``.

    Raises:
        UserError: There is no such module, it fails, or has no such class or function.
    """
    found = find_code(reference, folder)
    if ":" not in reference:
        return
    if kind is None:
        kind = "backbone" if callable(found) and _why_no_factory(found) is None else "attention"
    (name_backbone if kind == "backbone" else name_attention)(reference, found)


def pack_code(networks: Iterable[NetworkSpec]) -> list[dict[str, str]]:
    """Describe the user's own attentions and backbones in networks for another process.

    Returns:
        What :func:`unpack_code` takes there.

    Raises:
        UserError: Another process could not import one.
    """
    codes = {(kind, getattr(network, kind)): code for network in networks for kind, code in network.codes.items()}
    return [for_another_process(kind, name, code) for (kind, name), code in codes.items()]


def unpack_code(described: Iterable[dict[str, str]]) -> None:
    """Make attentions and backbones known in this process that the user named in another.

    Raises:
        UserError: They cannot be imported here.
    """
    for each in described:
        kind, name, reference = each["kind"], each["name"], each["reference"]
        names = _NAMES[kind]
        use_code(reference, each["folder"], kind)
        if name not in names and reference in names:
            names[name] = replace(names[reference], name=name)
        if name not in names:
            raise UserError(
                f"{reference} was imported, and did not register the {kind} {name!r}. Call csham.register_{kind} "
                "where the module is imported, not under if __name__ == '__main__'."
            )


_NAMES: dict[str, dict[str, Any]] = {"attention": ATTENTIONS, "backbone": BACKBONES}
_TAKEN = ("num_classes", "pretrained", "in_chans", "image_size")


def _check_free(name: str) -> None:
    """Refuse a name that csham, timm or torchvision has a network of."""
    if is_reference(name):
        return
    holder = "csham" if name in BACKBONES else next((one for one in LIBRARIES if name in names_in(one)), None)
    if holder is not None:
        raise UserError(f"register_backbone: {holder} has a backbone {name!r} of its own. Choose another name.")


def _own(
    name: str,
    factory: Any,
    summary: str = "",
    source: str = NO_PAPER,
    caller: str = "__main__",
    reference: str | None = None,
) -> OwnBackbone:
    """Make the entry of a factory, without calling it: large networks take long to build."""
    if not callable(factory) or (hasattr(factory, "state_dict") and not isinstance(factory, type)):
        what = "a network" if callable(factory) else kind_of(factory)
        raise UserError(
            f"{name} is {what}, and a backbone is a function or class of num_classes that makes a new network each "
            "time: lambda num_classes: MyNet(num_classes)."
        )
    if problem := _why_no_factory(factory):
        raise UserError(
            f"{name} {problem}. A backbone is a function or class that takes num_classes, and may take pretrained, "
            "in_chans and image_size; what else it needs goes into a function: "
            "lambda num_classes: MyNet(num_classes, depth=20)."
        )
    size = _parameters(factory).get("image_size")
    return OwnBackbone(
        name,
        summary or "a network of the user's own",
        source,
        params=0,
        library="own",
        build=factory,
        takes=frozenset(_TAKEN[1:]) & set(_parameters(factory)),
        usual_size=size.default if size is not None and isinstance(size.default, int) else None,
        code=where_from(factory, caller, reference),
    )


def _why_no_factory(factory: Any) -> str | None:
    """Say why a function or class cannot be called with ``num_classes``, and what else it may take; None if it can."""
    kinds = inspect.Parameter
    parameters = _parameters(factory)
    fixed = (kinds.VAR_POSITIONAL, kinds.POSITIONAL_ONLY)
    anything = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind is not kinds.VAR_KEYWORD and (p.name not in _TAKEN or p.kind in fixed)
    ]
    if "num_classes" not in parameters and not anything:
        return "takes no num_classes"
    return f"needs {', '.join(needed)} too" if needed else None


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # code without a signature, as of an extension
        return {}
