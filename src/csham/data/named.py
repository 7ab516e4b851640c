"""Datasets that are asked for by name: embedded ones and downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from csham.data.downloads import Archive, downloading
from csham.data.split import TEST, TRAIN, held_out

__all__ = ["DATASETS", "IMAGE_SIZES", "NamedImages", "load_named"]

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


@dataclass
class NamedImages:
    """A named dataset in memory.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        parts: (N,) uint8, as in ``PackedDataset``.
        classes: Class names.
        flip: Whether a mirrored image still belongs to its class.
    """

    images: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    flip: bool = True


def load_named(name: str, downloads: Path, say: Callable[[str], None]) -> NamedImages:
    """Load a small dataset of :data:`DATASETS`, downloading it first where it has to be.

    Args:
        name: ``"digits"``, ``"cifar10"`` or ``"cifar100"``; Caltech-101 is a folder (``caltech101``).
        downloads: Folder in which downloads are kept.
        say: Told what is going on when it takes a while.

    Raises:
        UserError: The download failed, or what was downloaded has a wrong checksum.
    """
    return _digits() if name == "digits" else _cifar(name, downloads, say)


def _digits() -> NamedImages:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second, and only packing needs it

    found = load_digits()
    grey = (found.images * (255 / 16)).round().astype(np.uint8)  # 0..16 in the source
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in grey]
    images = np.stack([np.asarray(image.convert("RGB")) for image in large])
    labels = found.target.astype(np.int64)
    parts = np.full(len(labels), TRAIN, np.uint8)
    parts[held_out(labels, 0.2, np.random.default_rng(0))] = TEST
    return NamedImages(images, labels, parts, tuple("0123456789"), flip=False)


def _cifar(name: str, downloads: Path, say: Callable[[str], None]) -> NamedImages:
    from torchvision import datasets  # noqa: PLC0415 - imports torch, which nothing else here needs

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    train, test = (_open_cifar(kind, name, downloads, train, say) for train in (True, False))
    labels = np.array([*train.targets, *test.targets], np.int64)
    parts = np.repeat(np.array([TRAIN, TEST], np.uint8), [len(train.data), len(test.data)])
    return NamedImages(np.concatenate([train.data, test.data]), labels, parts, tuple(train.classes))


def _open_cifar(kind: Any, name: str, downloads: Path, train: bool, say: Callable[[str], None]) -> Any:
    archive = Archive(name, kind.url, kind.tgz_md5, downloads / kind.filename, 170)
    if train:
        say(f"reading {name}" if archive.path.exists() else f"downloading {name} ({archive.megabytes} MB)")
    with downloading(archive):
        return kind(root=downloads, train=train, download=True)
