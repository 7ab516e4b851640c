"""The names of timm's and torchvision's networks, read from their source: a slip is met without importing them."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

__all__ = ["LIBRARIES", "is_registered", "registered_names"]

LIBRARIES = ("timm", "torchvision")

# A registered function: the decorator, perhaps others, and the name.
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def registered_names(library: str) -> frozenset[str]:
    """Return the classification networks that a library registers, without importing it; empty if it is not there."""
    found = importlib.util.find_spec(library)
    if found is None or found.origin is None:
        return frozenset()
    files = (Path(found.origin).parent / "models").glob("*.py")
    return frozenset(name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8")))


def is_registered(library: str, name: str) -> bool:
    """Ask a library itself, importing it; timm knows deprecated and pretrained names (``resnet50.a1_in1k``) too."""
    if importlib.util.find_spec(library) is None:
        return False
    if library == "torchvision":
        import torchvision.models  # noqa: PLC0415  takes seconds to import

        return name in torchvision.models.list_models(module=torchvision.models)
    import timm  # noqa: PLC0415

    return bool(timm.is_model(name)) and ("." not in name or name in timm.list_models(pretrained=True))
