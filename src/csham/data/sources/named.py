"""Datasets that are asked for by name: embedded ones and downloads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from csham.data.downloads import Archive, downloading
from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace, chunks_of
from csham.data.split import TEST, TRAIN, held_out

__all__ = ["DATASETS", "IMAGE_SIZES", "NOT_MIRRORED", "NamedSource"]

# What `csham list datasets` shows: name, and what it is and where it comes from.
DATASETS: dict[str, str] = {
    "digits": "1,797 handwritten digits, 10 classes, 8x8 px enlarged to 32x32; comes with scikit-learn",
    "cifar10": "60,000 photographs, 10 classes, 32x32 px; 170 MB download from cs.toronto.edu/~kriz",
    "cifar100": "60,000 photographs, 100 classes, 32x32 px; 169 MB download from cs.toronto.edu/~kriz",
    "caltech101": "8,677 photographs of any size, 101 classes, packed for 128x128 px; 137 MB download from "
    "data.caltech.edu",
    "caltech101-background": "the same with the 467 pictures of its background class as a 102nd",
}

# What a network sees by default. Caltech-101's images are mostly 300 px long: nine in ten then fill the 146 px that are
# stored for 128 with their shorter side, and one in four the 256 px that are stored for 224.
IMAGE_SIZES = {"digits": 32, "cifar10": 32, "cifar100": 32, "caltech101": 128, "caltech101-background": 128}

# In these a mirrored image is of another class, or of none.
NOT_MIRRORED = ("digits",)


class NamedSource(Source):
    """A small data set that is read into memory: scikit-learn's digits, torchvision's CIFAR."""

    NAMES: ClassVar[tuple[str, ...]] = ("digits", "cifar10", "cifar100")

    def __init__(self, name: str) -> None:
        self.name = self.location = name
        self.fingerprint = f"{name} 1"

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Take one of its names."""
        return cls(data) if isinstance(data, str) and data in cls.NAMES else None

    def default_size(self) -> int:
        """Size of its images, or what most take them for."""
        return IMAGE_SIZES[self.name]

    def load(self, work: Workplace) -> Images:
        """Read all images."""
        return _digits() if self.name == "digits" else _cifar(self.name, work.downloads, work.say)


def _in_memory(
    images: np.ndarray, labels: np.ndarray, parts: np.ndarray, classes: tuple[str, ...], *, flip: bool = True
) -> Images:
    def chunks(most: int) -> Iterator[Chunk]:
        return chunks_of(enumerate(images), most)

    return Images(Listing(Path(), classes, [], labels, parts), chunks, decoded=True, flip=flip)


def _digits() -> Images:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only packing needs it

    digits = load_digits()
    grey = (digits.images * (255 / 16)).round().astype(np.uint8)  # 0..16 in the source
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in grey]
    images = np.stack([np.asarray(image.convert("RGB")) for image in large])
    labels = digits.target.astype(np.int64)
    parts = np.full(len(labels), TRAIN, np.uint8)
    parts[held_out(labels, 0.2, np.random.default_rng(0))] = TEST
    return _in_memory(images, labels, parts, tuple("0123456789"), flip="digits" not in NOT_MIRRORED)


def _cifar(name: str, downloads: Path, say: Callable[[str], None]) -> Images:
    from torchvision import datasets  # noqa: PLC0415 - imports torch, which nothing else here needs

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    train, test = (_open_cifar(kind, name, downloads, train, say) for train in (True, False))
    labels = np.array([*train.targets, *test.targets], np.int64)
    parts = np.repeat(np.array([TRAIN, TEST], np.uint8), [len(train.data), len(test.data)])
    return _in_memory(np.concatenate([train.data, test.data]), labels, parts, tuple(train.classes))


def _open_cifar(kind: Any, name: str, downloads: Path, train: bool, say: Callable[[str], None]) -> Any:
    archive = Archive(name, kind.url, kind.tgz_md5, downloads / kind.filename, 170)
    if train:
        say(f"reading {name}" if archive.path.exists() else f"downloading {name} ({archive.megabytes} MB)")
    with downloading(archive):
        return kind(root=downloads, train=train, download=True)
