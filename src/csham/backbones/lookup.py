"""From a backbone's name to the network it means.

A name of csham's table is known at once. For any other timm is asked, and then torchvision, which takes the seconds
that importing them takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from csham.backbones.names import BACKBONES, LIBRARIES, BackboneName, names_in
from csham.backbones.own import Backbone, OwnBackbone, own_backbone
from csham.backbones.scale import Scale, family_of, split_scale
from csham.backbones.zoo import weights_path
from csham.errors import UserError, unknown_name
from csham.own_code import is_reference, unnamed_code

__all__ = ["Meaning", "check_backbone", "deeper", "find_backbone"]


@dataclass(frozen=True)
class Meaning:
    """Meaning of a name.

    Attributes:
        library: ``"csham"``, ``"timm"``, ``"torchvision"``, or ``"own"`` for the user's.
        name: Its name there.
        entry: Its entry in csham's table; None for networks that are used as their library has them.
        scale: Another width or depth than the network's own.
    """

    library: str
    name: str
    entry: BackboneName | None = None
    scale: Scale | None = None


def find_backbone(name: Backbone) -> Meaning:
    """Look a name up: csham's table, then timm's networks, then torchvision's.

    ``timm/NAME`` and ``torchvision/NAME`` mean that library's network as it is. A pretrained tag of timm's may follow
    a name: ``resnet50.a1_in1k`` is the table's ResNet-50 with these weights. After an ``@`` follows another width or
    depth (:mod:`csham.backbones.scale`): ``resnet20@width=1.25``, ``resnet50@depth=56``. Instead of a name it may be a
    function or class that makes the network (:func:`csham.register_backbone`).

    Raises:
        UserError: None of them has it; names the nearest. Or its width or depth cannot be changed, or it is code that
            the user has to name first.
    """
    if not isinstance(name, str):
        return _of_entry(own_backbone(name))
    base, scale = split_scale(name)
    meaning = _find(base)
    if scale is not None and meaning.library == "torchvision":
        raise UserError(f"{name}: the width and depth of torchvision's networks are fixed. Take one of timm's.")
    return meaning if scale is None else replace(meaning, scale=scale)


def check_backbone(name: Backbone, *, pretrained: bool = False, weights_file: Path | str | None = None) -> None:
    """Refuse a name that means no network, and weights that are not there: published ones, or a file.

    Raises:
        UserError: Says which names are near, or what to leave out.
    """
    meaning = find_backbone(name)
    entry = meaning.entry
    if weights_file is not None:
        if not weights_path(weights_file).is_file():
            raise UserError(
                f"there is no file of weights {weights_file}. weights_file (--weights-file) is a local file, or "
                "zoo:NAME (csham list zoo)."
            )
    elif pretrained and isinstance(entry, OwnBackbone) and not entry.has_published_weights:
        raise UserError(
            f"{entry.name} takes no pretrained, so it has no pretrained weights to start from. Let it take one, leave "
            "pretrained=False (--no-pretrained), or give a file: weights_file=FILE (--weights-file FILE)."
        )
    elif pretrained and (meaning.scale is not None or (entry is not None and not entry.has_published_weights)):
        raise UserError(
            f"{name} has no pretrained weights that others published. Leave pretrained=False (--no-pretrained), or "
            "give a file of your own: weights_file=FILE (--weights-file FILE)."
        )


def deeper(backbone: str, steps: int) -> list[int]:
    """Return the next ``steps`` depths above a backbone's own, each one block more; none where it cannot be deepened.

    Args:
        backbone: Its name, without a scale.
        steps: Number of steps.

    Raises:
        UserError: There is no such backbone.
    """
    family = family_of(backbone)
    if family is None or "depth" not in family.settings:
        return []
    meaning = find_backbone(backbone)
    if meaning.entry is not None and meaning.entry.depth is not None:
        depth, step = meaning.entry.depth, 2
    else:
        from csham.backbones.libraries import timm_depth  # noqa: PLC0415  takes seconds to import

        depth, step = timm_depth(meaning.name)
    return [depth + step * number for number in range(1, steps + 1)]


def _find(name: str) -> Meaning:
    if name in BACKBONES:
        return _of_entry(BACKBONES[name])
    if is_reference(name):
        raise unnamed_code("backbone", name)
    library, slash, rest = name.partition("/")
    if slash and library in LIBRARIES:
        if _is_in(library, rest):
            return Meaning(library, rest)
    elif "." in name:
        if _is_in("timm", name):
            return Meaning("timm", name, BACKBONES.get(name.partition(".")[0]))
    else:
        for library in LIBRARIES:
            if name in names_in(library):
                return Meaning(library, name)
    raise _unknown(name)


def _of_entry(entry: BackboneName) -> Meaning:
    return Meaning(entry.library, entry.made_from or entry.name, entry)


def _is_in(library: str, name: str) -> bool:
    """Ask a library; timm knows deprecated names and those of pretrained weights (``resnet50.a1_in1k``) too."""
    if library != "timm" or name in names_in(library):
        return name in names_in(library)
    import timm  # noqa: PLC0415  takes seconds to import

    return name in timm.list_models(pretrained=True) if "." in name else timm.is_model(name)


def _unknown(name: str) -> UserError:
    unlisted = [f"{library}/{other}" for library in LIBRARIES for other in sorted(names_in(library))]
    unlisted += sorted(frozenset().union(*(names_in(library) for library in LIBRARIES)) - set(BACKBONES))
    if "." in name:
        unlisted += _tagged(name)
    return unknown_name(
        "backbone", name, BACKBONES, unlisted=unlisted, hint="Any network of timm's or torchvision's works by its name."
    )


def _tagged(name: str) -> list[str]:
    """Return the pretrained names of an architecture, such as ``resnet18.a1_in1k``."""
    import timm  # noqa: PLC0415  takes seconds to import

    prefix = "timm/" if name.startswith("timm/") else ""
    architecture = name.removeprefix("timm/").partition(".")[0]
    return [prefix + found for found in timm.list_models(f"{architecture}.*", pretrained=True)]
