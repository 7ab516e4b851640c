"""Folders of the trained networks that come with the package, and the files of weights that ``weights_file`` names.

``zoo:NAME`` stands wherever a run or a shared folder does, and for its weights. Needs no torch.
"""

from __future__ import annotations

from pathlib import Path

from csham.settings import check_choice

__all__ = ["PREFIX", "ZOO", "is_in_zoo", "weights_path", "zoo_folder", "zoo_names"]

ZOO = Path(__file__).parent.parent / "zoo"
"""Folder of the shared folders."""

PREFIX = "zoo:"
"""Stands before the name of a network."""


def is_in_zoo(path: Path | str) -> bool:
    """Return True if ``zoo:NAME`` is meant, not something on this machine."""
    return str(path).startswith(PREFIX)


def zoo_names() -> list[str]:
    """Return the names of the networks, without the prefix."""
    return sorted(file.parent.name for file in ZOO.glob("*/config.json"))


def zoo_folder(name: Path | str) -> Path:
    """Return the shared folder of a network.

    Args:
        name: ``zoo:NAME``.

    Raises:
        UserError: There is none of that name.
    """
    wanted, names = str(name).removeprefix(PREFIX), zoo_names()
    check_choice("network of the zoo", wanted, names)
    return ZOO / wanted


def weights_path(file: Path | str) -> Path:
    """Return the file that ``weights_file`` means, which may be ``zoo:NAME``.

    Raises:
        UserError: There is no such network in the zoo.
    """
    return zoo_folder(file) / "model.safetensors" if is_in_zoo(file) else Path(file)
