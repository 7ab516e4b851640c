"""Shared folders on the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten
from typing import Any

from csham.errors import UserError
from csham.files import SUMS
from csham.inference.shared import FILES

__all__ = ["download", "is_on_hub"]

_PREFIX = "hf:"


def is_on_hub(path: Path | str) -> bool:
    """Return True if ``hf:user/name`` is meant, not something on this machine."""
    return str(path).startswith(_PREFIX)


def download(name: str, **settings: Any) -> Path:
    """Return the folder to which the Hub's client downloads the files of a shared folder, once.

    Args:
        name: ``hf:user/name`` or ``hf:user/name@revision``.
        **settings: Other arguments of :func:`huggingface_hub.snapshot_download`, such as ``token``.

    Raises:
        UserError: There is no such repository, or it is out of reach and not in the client's cache.
    """
    repo, _, revision = name.removeprefix(_PREFIX).strip("/").partition("@")
    if repo.count("/") != 1:
        raise UserError(f"{name} names no repository of the Hub. Write hf:user/name or hf:user/name@revision.")
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  optional, and slow to import
    except ImportError as err:
        raise UserError(f'{name} needs huggingface_hub. Install it: pip install "csham[share]".') from err
    try:
        settings = {"revision": revision or None, **settings}
        return Path(snapshot_download(repo, allow_patterns=[*FILES, SUMS], **settings))
    except Exception as err:  # whatever the Hub's client raises means the same
        reason = shorten(str(err) or type(err).__name__, 160, placeholder=" ...").rstrip(".")
        where = os.environ.get("HF_ENDPOINT") or "the Hugging Face Hub"
        raise UserError(
            f"{name} could not be had from {where}: {reason}. Without a network, give the path of the shared folder."
        ) from err
