"""Sources of images: what the user can name as data, one file for each kind.

A kind is a subclass of :class:`Source` (``base``) and a line of :data:`SOURCES`; packing knows nothing else of it.
``layout`` says what folders of images mean, on a disk or in an archive, and ``columns`` what columns of labels and
parts do. May import what ``csham.data`` may. Start with :func:`open_source`.
"""

from __future__ import annotations

from pathlib import Path

from csham.data.sources.archive import ArchiveSource
from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace
from csham.data.sources.caltech101 import Caltech101Source
from csham.data.sources.columns import path_and_columns
from csham.data.sources.folder import FolderSource, existing
from csham.data.sources.layout import is_silent
from csham.data.sources.named import DATASETS, NamedSource
from csham.data.sources.parquet import ParquetSource
from csham.data.sources.table import TableSource
from csham.errors import UserError, known_names

__all__ = ["SOURCES", "Chunk", "Images", "Listing", "Source", "Workplace", "check_apart", "open_source"]

# In this order they are asked; whatever is added in front goes first.
SOURCES: list[type[Source]] = [
    Caltech101Source,
    NamedSource,
    TableSource,
    ArchiveSource,
    ParquetSource,
    FolderSource,
]


def open_source(data: str | Path | Source) -> Source:
    """Find the source of what the user named.

    Raises:
        UserError: No kind of source takes it, or the one that does cannot be trained on.
    """
    if isinstance(data, Source):
        return data
    for kind in SOURCES:
        source = kind.find(data)
        if source is not None:
            return source
    if existing(data) is not None:
        raise UserError(
            f"{data} is a file of no kind that is read. An image folder is, a table of paths and labels (.csv, .tsv), "
            "a zip or tar of an image folder, and Parquet (.parquet). Unpack it first if it is another archive."
        )
    known = known_names("dataset", data, DATASETS)
    raise UserError(f"{str(data)!r} is neither a dataset's name nor a folder or file. {known}")


def check_there(data: str, whose: str, what_to_do: str) -> None:
    """Refuse images that a run or a study names, where nothing is any more.

    Args:
        data: Whatever it names.
        whose: The run or the study.
        what_to_do: Ends the message.
    """
    if existing(data) is None and all(kind.find(data) is None for kind in SOURCES):
        place = data if Path(data).is_absolute() else f"{data}, from {Path.cwd()},"
        raise UserError(f"the images of {whose} are said to be at {place} and are not there. {what_to_do}")


def check_apart(data: str, place: Path, what_to_do: str) -> None:
    """Refuse a place for results where they would change what is read as the data.

    Args:
        data: Whatever the user named.
        place: To be made.
        what_to_do: Ends the message.
    """
    (root, _), place = path_and_columns(data), place.resolve()
    if root is None or not place.is_relative_to(root) or any(map(is_silent, place.relative_to(root).parts)):
        return
    try:
        objection = open_source(data).objection(place)
    except (UserError, OSError):
        return  # whoever reads the images says it
    if objection is not None:
        raise UserError(f"{objection} {what_to_do}")
