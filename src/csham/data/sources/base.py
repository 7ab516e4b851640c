"""A source of images, and what it says of them: all that packing asks for."""

from __future__ import annotations

import contextlib
import os
import statistics
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from csham.data.decode import Content, Encoded, open_image

__all__ = [
    "Chunk",
    "Images",
    "Listing",
    "Source",
    "Workplace",
    "chunk_images",
    "chunks_of",
    "default_image_size",
    "sample_of",
]

_T = TypeVar("_T")
_CHUNK_IMAGES = 256
_CHUNK_BYTES = 32 * 2**20
_SAMPLE = 200
_SIZES = (32, 64, 96, 128, 160, 224)


class Chunk(NamedTuple):
    """Some images of a source: their rows in the listing, rising, and what each is read from."""

    rows: Sequence[int]
    contents: list[Content]


@dataclass
class Listing:
    """The images of a source, in a stable order.

    Attributes:
        root: Folder, or archive, that holds them.
        classes: Class names; ``labels`` counts in this order.
        files: Name of each image, such as its path below ``root``; empty for images without names.
        labels: (N,) int64.
        parts: (N,) uint8, as in ``PackedDataset``.
        fingerprint: Changes when an image is added, removed, renamed or modified.
        ignored: Number of other files there were.
        notes: Sentences for the user.
        shown: Name of each image in the message that it is bad; by default its full path.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: np.ndarray
    parts: np.ndarray
    fingerprint: str = ""
    ignored: int = 0
    notes: list[str] = field(default_factory=list)
    shown: list[str] | None = None

    def paths(self) -> list[str]:
        """Full paths of the files."""
        return [os.path.join(self.root, file) for file in self.files]  # noqa: PTH118 - a million Paths are slow

    def names(self) -> list[str]:
        """Return what to call each image in a sentence about it alone."""
        return self.paths() if self.shown is None else self.shown


@dataclass
class Images:
    """Images that can be packed.

    Attributes:
        listing: All of them.
        chunks: Their contents: each image once, a chunk holding at most so many images and about so many bytes, in
            whatever order the source is read fastest. Called once, perhaps from another thread.
        decoded: True if contents are pixels, for which workers are not worth their start.
        flip: True if a mirrored image still belongs to its class.
    """

    listing: Listing
    chunks: Callable[[int], Iterator[Chunk]]
    decoded: bool = False
    flip: bool = True


@dataclass
class Workplace:
    """Means that a source may use while it is packed.

    Attributes:
        downloads: Folder in which downloads are kept.
        scratch: Path of a folder that the source may make; it is removed when all is packed.
        say: Told what is going on when it takes a while.
    """

    downloads: Path
    scratch: Path
    say: Callable[[str], None]


class Source(ABC):
    """Images with classes and parts, wherever they are; a new kind of data is a new subclass.

    Attributes:
        name: Name of the data set.
        location: Location of the data: one location has one cache for each image size.
        fingerprint: Changes when what is there does.
        listing: Listing of the images, if that is known before it is loaded; its files then have names.
    """

    name: str
    location: str
    fingerprint: str
    listing: Listing | None = None

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Open what the user named if it is of this kind; None leaves it to the other kinds.

        Raises:
            UserError: It is of this kind, and cannot be trained on.
        """
        return None

    @abstractmethod
    def default_size(self) -> int:
        """Side in pixels of what the network sees, where the user names none."""

    @abstractmethod
    def load(self, work: Workplace) -> Images:
        """Give the images, downloading them first where they have to be.

        Raises:
            UserError: That failed.
        """

    def objection(self, place: Path) -> str | None:
        """Say why results must not be written to a place below the data; None where they do no harm."""
        return None


def chunks_of(contents: Iterable[tuple[int, Content]], most: int) -> Iterator[Chunk]:
    """Gather images, each with its row, into chunks of at most ``most`` images and about 32 MiB.

    Args:
        contents: Row and content of each image, in any order.
        most: Images of a chunk.
    """
    gathered: list[tuple[int, Content]] = []
    size = 0
    for row, content in contents:
        gathered.append((row, content))
        size += _bytes_of(content)
        if len(gathered) >= most or size >= _CHUNK_BYTES:
            yield _chunk(gathered)
            gathered, size = [], 0
    if gathered:
        yield _chunk(gathered)


def chunk_images(side: int) -> int:
    """Images whose squares of ``side`` pixels make one chunk."""
    return min(_CHUNK_IMAGES, max(1, _CHUNK_BYTES // (side * side * 3)))


def default_image_size(images: Sequence[str | Encoded]) -> int:
    """Largest usual image size that the median shorter side of a sample of images fills; at least 32 px."""
    sides = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on what decoding reports or can do with
        for image_file in sample_of(images):
            with contextlib.suppress(Exception), open_image(image_file) as image:
                sides.append(min(image.size))
    median = statistics.median(sides) if sides else 0
    return max((size for size in _SIZES if size <= median), default=_SIZES[0])


def sample_of(values: Sequence[_T]) -> Sequence[_T]:
    """Take about 200 of many values, or 399 at most, from end to end."""
    return values[:: max(1, len(values) // _SAMPLE)]


def _chunk(gathered: list[tuple[int, Content]]) -> Chunk:
    gathered.sort(key=lambda pair: pair[0])
    return Chunk([row for row, _ in gathered], [content for _, content in gathered])


def _bytes_of(content: Content) -> int:
    if isinstance(content, np.ndarray):
        return content.nbytes
    return 0 if isinstance(content, str) else len(content[1])
