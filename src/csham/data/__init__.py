"""Datasets, from files to augmented batches on the device.

:func:`prepare` packs what the user names, a dataset (:data:`DATASETS`), an image folder or another of the ``sources``,
into a checked, memory-mapped cache (``packing``, over ``sources``, ``decode`` and ``cache``), giving a
:class:`PackedDataset`;
:class:`Batches` cuts seeded batches from it. Only ``batches`` imports torch, so preparing is quick to start.
May import ``csham.errors`` and nothing else of the package. Start with :func:`prepare`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csham.data.batches import Batch, Batches
    from csham.data.dataset import PackedDataset
    from csham.data.decode import BadFile
    from csham.data.packing import prepare
    from csham.data.sources.base import Source
    from csham.data.sources.named import DATASETS
    from csham.data.split import Split

__all__ = ["DATASETS", "BadFile", "Batch", "Batches", "PackedDataset", "Source", "Split", "prepare"]

_FILES = {
    "DATASETS": "sources.named",
    "BadFile": "decode",
    "Batch": "batches",
    "Batches": "batches",
    "PackedDataset": "dataset",
    "Source": "sources.base",
    "Split": "split",
    "prepare": "packing",
}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        value = getattr(import_module(f"csham.data.{_FILES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'csham.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
