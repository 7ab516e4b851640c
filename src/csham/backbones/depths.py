"""Depths of the backbones, and the steps in which each can be made deeper."""

from __future__ import annotations

from csham.backbones.lookup import find_backbone
from csham.backbones.scale import family_of

__all__ = ["deeper"]


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
    found = find_backbone(backbone)
    if found.entry is not None and found.entry.depth is not None:
        own, step = found.entry.depth, 2
    else:
        from csham.backbones.scaled import timm_depth  # noqa: PLC0415  takes seconds to import

        own, step = timm_depth(found.name)
    return [own + step * number for number in range(1, steps + 1)]
