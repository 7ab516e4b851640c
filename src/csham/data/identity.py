"""Identity of a dataset, wherever it lies: for code that must know whether it is still the same one."""

from __future__ import annotations

import hashlib
from typing import Any

from csham.data.dataset import PackedDataset

__all__ = ["describe_data"]


def describe_data(dataset: PackedDataset) -> dict[str, Any]:
    """Return what must stay the same for a run to go on: classes, number of images, content."""
    content = hashlib.sha256()
    for column in (dataset.labels, dataset.parts, dataset.sums):
        content.update(column.tobytes())
    return {
        "classes": list(dataset.classes),
        "images": len(dataset.labels),
        "image_size": dataset.image_size,
        "fingerprint": content.hexdigest(),
    }
