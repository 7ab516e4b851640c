"""A packed dataset, opened: pixels in a memory map, labels and everything that was found while packing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csham.data.decode import BadFile
from csham.data.duplicates import find_duplicates
from csham.data.split import TEST, TRAIN, VALIDATION, Split, split_parts
from csham.errors import UserError

__all__ = ["PackedDataset", "describe_data", "stored_side"]


def stored_side(image_size: int) -> int:
    """Side of the stored squares: the image size itself up to 64 px, above it what crops need around them."""
    return image_size if image_size <= 64 else round(image_size / 0.875)


@dataclass(eq=False)
class PackedDataset:
    """Images as :func:`csham.data.prepare` packed them; made by it, not by hand.

    Attributes:
        name: The dataset's name, or the folder's.
        source: The dataset's name, or the folder's full path.
        classes: Class names; ``labels`` counts in this order.
        image_size: S, side in pixels of what the network sees.
        images: (N, P, P, 3) uint8, RGB, read-only memory map; P is S up to 64 px and S / 0.875 above.
        labels: (N,) int64.
        parts: (N,) uint8: 0 given as training, 1 as validation, 2 as test image.
        sums: (N, 3, 2) int64: sum and sum of squares of each channel of each image.
        path: The cache folder.
        bad_files: Files that could not be decoded and were left out.
        ignored_files: Number of files that were no images by their name.
        notes: Sentences for the user about what was found.
        flip: True if a mirrored image still belongs to its class.
        rebuilt: Reason why a cache that existed was made anew; None if it was not.
        from_cache: True if it was opened rather than built.
        files: Of a folder's images, below the folder, as they were when it was opened.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    image_size: int
    images: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    sums: np.ndarray
    path: Path
    bad_files: list[BadFile] = field(default_factory=list)
    ignored_files: int = 0
    notes: list[str] = field(default_factory=list)
    flip: bool = True
    rebuilt: str | None = None
    from_cache: bool = False
    files: list[str] | None = field(default=None, repr=False)
    # Copies that Batches keeps on a GPU, by device, so that training and evaluation share one.
    resident: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, seed: int, validation: float = 0.1) -> Split:
        """Divide the images into three parts; see :func:`csham.data.split.split_parts`.

        Args:
            seed: 0 or more.
            validation: Fraction of each class's training images to hold out, unless the source gives a
                validation part; 0 holds out none.

        Raises:
            UserError: A value is out of range.
        """
        return split_parts(self.labels, self.parts, seed, validation)

    def name_of(self, row: int) -> str:
        """Name an image: its file, or its class and number where it has none."""
        if self.files is not None:
            return self.files[row]
        return f"{self.classes[self.labels[row]]} (number {row})"

    def path_of(self, row: int) -> str:
        """Return the file of an image, with its folder, or what it is called where it is none on a disk."""
        name = self.name_of(row)
        return os.path.join(self.source, name) if os.path.isdir(self.source) and self.files is not None else name  # noqa: PTH112, PTH118

    def normalisation(self, indices: np.ndarray | Sequence[int]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over these images, in 0..1.

        A channel that never varies gets 1/255 for its deviation, so that dividing by it stays harmless.

        Raises:
            UserError: ``indices`` is empty.
        """
        if len(indices) == 0:
            raise UserError("no images to take mean and deviation from: indices is empty.")
        pixels = len(indices) * self.images.shape[1] * self.images.shape[2]
        first, second = np.moveaxis(self.sums[np.asarray(indices)].sum(0) / pixels, -1, 0)
        deviation = np.sqrt(np.maximum(second - first**2, 1.0))
        return (first / 255).tolist(), (deviation / 255).tolist()

    def describe(self) -> dict[str, Any]:
        """Return what was found, ready for JSON."""
        counts = {name: int((self.parts == part).sum()) for name, part in _PARTS.items()}
        per_class = np.bincount(self.labels, minlength=len(self.classes))
        return {
            "name": self.name,
            "source": self.source,
            "cache": str(self.path),
            "images": len(self),
            "image_size": self.image_size,
            "stored_size": int(self.images.shape[1]),
            "classes": list(self.classes),
            "images_per_class": dict(zip(self.classes, per_class.tolist(), strict=True)),
            "parts": counts,
            "test_part": _test_part(counts["test"], int(per_class.max(initial=0))),
            "bad_files": [file._asdict() for file in self.bad_files],
            "ignored_files": self.ignored_files,
            "notes": list(self.notes),
            "duplicates": find_duplicates(self).describe(),
            "bytes": int(self.images.nbytes),
            "rebuilt": self.rebuilt,
            "from_cache": self.from_cache,
        }


def describe_data(dataset: PackedDataset) -> dict[str, Any]:
    """Return what must stay the same, wherever the images lie, for a run to go on: classes, number and content."""
    content = hashlib.sha256()
    for column in (dataset.labels, dataset.parts, dataset.sums):
        content.update(column.tobytes())
    return {
        "classes": list(dataset.classes),
        "images": len(dataset.labels),
        "image_size": dataset.image_size,
        "fingerprint": content.hexdigest(),
    }


def _test_part(given: int, most: int) -> str:
    if given:
        return "given"
    return "20% of each class, by seed" if most > 1 else "none, since no class has two images"


_PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
