"""Syntax by which a backbone's name asks for more channels or layers: ``resnet20@width=1.25``, ``resnet50@depth=56``.

Importable without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from csham.backbones.names import BACKBONES
from csham.backbones.own import OwnBackbone
from csham.errors import UserError, unknown_name
from csham.own_code import is_reference

__all__ = ["FAMILIES", "Family", "Scale", "family_of", "split_scale"]

_MOST = 16.0


@dataclass(frozen=True)
class Family:
    """Backbones that are widened and deepened the same way.

    Attributes:
        name: Name for them in sentences.
        prefixes: Of their names.
        settings: Those of ``width`` and ``depth`` that they have.
    """

    name: str
    prefixes: tuple[str, ...]
    settings: tuple[str, ...] = ("width", "depth")


FAMILIES = (
    Family("resnet", ("resnet", "resnext", "wide_resnet", "seresnet", "seresnext", "ecaresnet")),
    Family("wrn", ("wrn",)),
    Family("densenet", ("densenet",)),
    Family("mobilenetv2", ("mobilenetv2_",), ("width",)),
    Family("vgg", ("vgg",), ("width",)),
    Family("lenet5", ("lenet5",), ("width",)),
)

# Of timm's other families whose names begin likewise.
_OTHERS = ("resnetv2", "resnetrs", "resnetaa", "resnetblur", "resnest")


@dataclass(frozen=True)
class Scale:
    """Scale that a name asks for.

    Attributes:
        width: Factor on the channels of every layer; None for the network's own.
        depth: Weight layers, counted as the network's name counts them; None for the network's own.
    """

    width: float | None = None
    depth: int | None = None

    def __str__(self) -> str:
        parts = [f"width={self.width:g}"] if self.width is not None else []
        parts += [f"depth={self.depth}"] if self.depth is not None else []
        return ",".join(parts)


def split_scale(name: str) -> tuple[str, Scale | None]:
    """Take ``NAME@width=F,depth=N`` apart.

    Args:
        name: Of a backbone, perhaps with a width, a depth or both.

    Raises:
        UserError: The text after the ``@`` cannot be read, or the backbone has no such setting.
    """
    base, at, words = name.partition("@")
    if not at:
        return name, None
    settings: dict[str, str] = {}
    for word in words.split(","):
        key, equals, value = word.partition("=")
        if key not in ("width", "depth"):
            raise unknown_name("scale of a backbone", key, ("width", "depth"), hint=f"Write {base}@width=1.25.")
        if not equals or key in settings:
            raise UserError(f"backbone {name!r}: write a width or a depth once, as in {base}@width=1.25.")
        settings[key] = value
    _check_family(base, settings)
    width = _width(name, settings["width"]) if "width" in settings else None
    depth = _depth(name, settings["depth"]) if "depth" in settings else None
    return base, Scale(width, depth)


def family_of(base: str) -> Family | None:
    """Return the family of a backbone that can be widened or deepened; None for others."""
    if is_reference(base) or isinstance(BACKBONES.get(base), OwnBackbone):
        return None
    name = base.removeprefix("timm/")
    if base.startswith("torchvision/") or name.startswith(_OTHERS):
        return None
    return next((family for family in FAMILIES if name.startswith(family.prefixes)), None)


def _check_family(base: str, settings: dict[str, str]) -> None:
    family = family_of(base)
    for key in settings:
        if family is None or key not in family.settings:
            able = [other.name for other in FAMILIES if key in other.settings]
            raise UserError(
                f"backbone {base!r} has no {key} that could be changed here. These have: {', '.join(able)} and what "
                "begins with these names."
            )


def _width(name: str, text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if not 1 / _MOST <= width <= _MOST:
        raise UserError(f"backbone {name!r}: the width is a factor from {1 / _MOST:g} to {_MOST:g}, got {text!r}.")
    return width


def _depth(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise UserError(f"backbone {name!r}: the depth is a number of weight layers, got {text!r}.")
    return int(text)
