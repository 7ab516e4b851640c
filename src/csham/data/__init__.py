"""Datasets, from files to augmented batches on the device.

:func:`prepare` packs what the user names, a dataset (:data:`DATASETS`), an image folder or another of the ``sources``,
into a checked, memory-mapped cache (``packing``, over ``sources``, ``decode`` and ``cache``), giving a
:class:`PackedDataset`;
:class:`Batches` cuts seeded batches from it. Only ``batches`` imports torch, so preparing is quick to start.
May import what lies beside or below ``csham.errors``, and no other room. Start with :func:`prepare`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.data.batches import Batch, Batches
    from csham.data.dataset import PackedDataset
    from csham.data.decode import BadFile
    from csham.data.packing import prepare
    from csham.data.sources.base import Source
    from csham.data.sources.named import DATASETS
    from csham.data.split import Split

__all__ = ["DATASETS", "BadFile", "Batch", "Batches", "PackedDataset", "Source", "Split", "prepare"]

__getattr__ = lazy_names(
    __name__,
    {
        "DATASETS": "csham.data.sources.named",
        "BadFile": "csham.data.decode",
        "Batch": "csham.data.batches",
        "Batches": "csham.data.batches",
        "PackedDataset": "csham.data.dataset",
        "Source": "csham.data.sources.base",
        "Split": "csham.data.split",
        "prepare": "csham.data.packing",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
