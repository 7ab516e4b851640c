"""Images that are there more than once: in two parts, under two classes, or twice in one.

Images are the same if they hold the same pixels as they were packed. The same photograph compressed anew, or cut
otherwise, is another image here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from csham.data.split import TEST, TRAIN, VALIDATION, Split
from csham.errors import UserError
from csham.words import some

if TYPE_CHECKING:
    from csham.data.dataset import PackedDataset

__all__ = ["MOST", "Duplicates", "also_among", "check_leaks", "find_duplicates"]

MOST = 0.5  # of a test part
_NAMED = 3


@dataclass(frozen=True)
class Duplicates:
    """Groups of images of a dataset that are the same.

    Attributes:
        first: For each image the first one that is the same, perhaps itself; row numbers, (N,).
        dataset: The dataset.
    """

    first: np.ndarray
    dataset: PackedDataset

    @property
    def repeated(self) -> np.ndarray:
        """Rows of images that were there before, in whatever part or class."""
        return np.flatnonzero(self.first != np.arange(len(self.first)))

    def also_in(self, rows: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
        """Return each of ``rows`` whose image is among ``others`` too, with the first of these that it is."""
        row_of = {int(self.first[row]): int(row) for row in others[::-1]}
        return [(int(row), row_of[int(self.first[row])]) for row in rows if int(self.first[row]) in row_of]

    def under_two_classes(self) -> list[list[int]]:
        """Return the rows of each image that has more than one class."""
        labels = self.dataset.labels
        mixed = set(self.first[self.repeated[labels[self.repeated] != labels[self.first[self.repeated]]]].tolist())
        groups: dict[int, list[int]] = {first: [] for first in sorted(mixed)}
        for row in np.flatnonzero(np.isin(self.first, list(mixed))):
            groups[int(self.first[row])].append(int(row))
        return list(groups.values())

    def describe(self) -> dict[str, Any]:
        """Name all of them, ready for JSON; parts are those that the source gives."""
        train, validation, test = (np.flatnonzero(self.dataset.parts == part) for part in (TRAIN, VALIDATION, TEST))
        named = self.dataset.name_of
        return {
            "repeated": len(self.repeated),
            "test_and_training": [[*map(named, pair)] for pair in self.also_in(test, train)],
            "test_and_validation": [[*map(named, pair)] for pair in self.also_in(test, validation)],
            "validation_and_training": [[*map(named, pair)] for pair in self.also_in(validation, train)],
            "under_two_classes": [[*map(named, rows)] for rows in self.under_two_classes()],
        }


def find_duplicates(dataset: PackedDataset) -> Duplicates:
    """Compare all images with each other: those alone whose sums over the channels agree are looked at."""
    _, inverse, counts = np.unique(_mixed_sums(dataset), return_inverse=True, return_counts=True)
    first = np.arange(len(dataset))
    known: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[inverse] > 1):
        first[row] = known.setdefault(_content(dataset, row), int(row))
    return Duplicates(first, dataset)


def also_among(dataset: PackedDataset, rows: np.ndarray, other: PackedDataset, other_rows: np.ndarray) -> np.ndarray:
    """Return those of ``rows`` whose image is among ``other_rows`` of another dataset of the same image size."""
    ours, theirs = _mixed_sums(dataset)[rows], _mixed_sums(other)[other_rows]
    known = {_content(other, row) for row in other_rows[np.isin(theirs, ours)]}
    return np.array([row for row in rows[np.isin(ours, theirs)] if _content(dataset, row) in known], np.int64)


def check_leaks(dataset: PackedDataset, parts: Split, *, allow: bool = False) -> list[str]:
    """Say which images a run would be measured on that it is trained with.

    Args:
        dataset: The images.
        parts: As the run splits them.
        allow: True if most test images may be training images.

    Returns:
        Sentences for the user.

    Raises:
        UserError: Most test images are training images, and ``allow`` is False.
    """
    duplicates = find_duplicates(dataset)
    if not len(duplicates.repeated):
        return []
    notes = []
    for name, rows in (("test", parts.test), ("validation", parts.validation)):
        pairs = duplicates.also_in(rows, parts.train)
        if pairs:
            are = "is a training image" if len(pairs) == 1 else "are training images"
            notes.append(f"{len(pairs):,} of {len(rows):,} {name} images {are} too: {_named(dataset, pairs)}")
        if name == "test" and len(pairs) > MOST * len(rows) and not allow:
            raise UserError(
                f"{notes[-1]}. Accuracy on them says nothing of new images. Put other images into the test part, or "
                "train all the same with --allow-leaks."
            )
    return notes


def _mixed_sums(dataset: PackedDataset) -> np.ndarray:
    """Sums over the channels of each image, as one number."""
    factors = np.random.default_rng(0).integers(1, 2**62, 6)
    mixed: np.ndarray = (dataset.sums.reshape(len(dataset), 6) * factors).sum(1)  # modulo 2**64
    return mixed


def _content(dataset: PackedDataset, row: int | np.integer[Any]) -> bytes:
    return hashlib.blake2b(dataset.images[row].tobytes(), digest_size=16).digest()


def _named(dataset: PackedDataset, pairs: list[tuple[int, int]]) -> str:
    return some([" = ".join(map(dataset.name_of, pair)) for pair in pairs], _NAMED, "; ")
