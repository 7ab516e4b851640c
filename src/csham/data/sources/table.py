"""A CSV or TSV table of image files and their labels, with their parts if a column says so."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csham.data.decode import Content, Unreadable
from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace, chunks_of, default_image_size
from csham.data.sources.columns import PART_COLUMNS, check_classes, path_and_columns, settled_parts
from csham.data.sources.layout import is_class_name, note_background, stamp_of
from csham.data.split import PARTS
from csham.errors import UserError
from csham.words import counted

__all__ = ["TableSource", "rows_of"]

_ENDINGS = (".csv", ".tsv")
_NAMES = {
    "path": ("path", "image", "file", "filename", "file_name", "filepath", "image_path"),
    "label": ("label", "class", "class_name", "category"),
    "part": PART_COLUMNS,
}
_EXPECTED = (
    "A table's first line names its columns: path (or image, file, filename), label (or class) and, if it says which "
    "images train and which test, part (or split). Others are named behind a colon: TABLE:PATH,LABEL or "
    "TABLE:PATH,LABEL,PART."
)


class TableSource(Source):
    """Lines of path and label; a path is taken from the table's folder unless it is absolute."""

    def __init__(self, path: Path, columns: tuple[str, ...] = ()) -> None:
        self.listing: Listing
        self.listing, self._statuses = _list_table(path, columns)
        self.name = path.name
        self.location = ":".join([str(path), *([",".join(columns)] if columns else [])])
        self.fingerprint = self.listing.fingerprint

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Take a file whose name ends as tables' do, perhaps with columns behind it."""
        path, columns = path_and_columns(data)
        is_table = path is not None and path.is_file() and path.name.lower().endswith(_ENDINGS)
        return cls(path, columns) if is_table and path is not None else None

    def default_size(self) -> int:
        """Largest usual size that the images fill."""
        return default_image_size([path for path in self._contents() if isinstance(path, str)])

    def load(self, work: Workplace) -> Images:
        """Give the paths of the files."""

        def chunks(most: int) -> Iterator[Chunk]:
            return chunks_of(enumerate(self._contents()), most)

        return Images(self.listing, chunks)

    def _contents(self) -> list[Content]:
        pairs = zip(self.listing.paths(), self._statuses, strict=True)
        return [path if status.fault is None else Unreadable(path, status.fault) for path, status in pairs]


def rows_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV or TSV file that are not empty, each with the number of the line that it ends on.

    Raises:
        UserError: It cannot be read, or a row has other than the first one's number of columns.
    """
    return _rows(path, _text(path, _read(path)))


class _Line(NamedTuple):
    number: int
    path: str
    label: str
    part: int


class _Status(NamedTuple):
    stamp: str  # empty where there is no file
    fault: str | None  # why the file must not even be opened


def _list_table(path: Path, columns: tuple[str, ...]) -> tuple[Listing, list[_Status]]:
    content = _read(path)
    lines, repeated = _once(_lines(path, _text(path, content), columns))
    if not lines:
        raise UserError(f"{path} names no images. {_EXPECTED}")
    classes = tuple(sorted({line.label for line in lines}))
    label_of = {name: label for label, name in enumerate(classes)}
    parts = settled_parts(np.array([line.part for line in lines], np.uint8), path)
    labels = np.array([label_of[line.label] for line in lines], np.int64)
    check_classes(classes, labels, parts, path)

    order = sorted(range(len(lines)), key=lambda row: (parts[row], labels[row], lines[row].path))
    lines, labels, parts = [lines[row] for row in order], labels[order], parts[order]
    listing = Listing(path.parent, classes, [line.path for line in lines], labels, parts)
    statuses = [_status(file) for file in listing.paths()]
    if all(not status.stamp or status.fault is not None for status in statuses):
        raise UserError(
            f"none of the {len(lines):,} files that {path} names is there. First: {listing.paths()[0]}. Paths are "
            "taken from the table's folder, unless they are absolute."
        )
    listing.shown = [f"{file} (line {line.number})" for file, line in zip(listing.paths(), lines, strict=True)]
    listing.fingerprint = _fingerprint(content, statuses)
    if repeated:
        listing.notes.append(f"left out {counted(repeated, 'line')} with what an earlier line says")
    note_background(listing)
    return listing, statuses


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise UserError(f"cannot read {path}: {err.strerror}. Check its permissions.") from err


def _text(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as err:
        line = content[: err.start].count(b"\n") + 1
        raise UserError(f"line {line} of {path} is no UTF-8 text. Save the table as UTF-8.") from err


def _lines(path: Path, text: str, columns: tuple[str, ...]) -> Iterator[_Line]:
    rows = _rows(path, text)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    places = _places(path, header, columns)
    for number, row in rows:
        yield _line(path, number, {what: row[place] for what, place in places.items()})


# What Excel reads, and some write, above a table.
_EXCEL_S = re.compile(r'"?sep=([,;\t|])"?\r?')


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    first, _, rest = text.partition("\n")
    said = _EXCEL_S.fullmatch(first)
    if said is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    else:  # the line is left empty, so that lines keep their numbers
        delimiter, text = said[1], f"\n{rest}"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = 0
    try:
        for row in reader:
            if any(value.strip() for value in row):
                columns = columns or len(row)
                if len(row) != columns:
                    raise UserError(
                        f"line {reader.line_num} of {path} has {len(row)} columns and the first line {columns}. A "
                        "value that holds the delimiter needs quotes around it."
                    )
                yield reader.line_num, row
    except csv.Error as err:
        raise UserError(f"line {reader.line_num} of {path} cannot be read: {err}. Is a quote left open?") from err


def _places(path: Path, header: list[str], columns: tuple[str, ...]) -> dict[str, int]:
    """Place of the columns of paths, labels and, if there is one, parts."""
    if columns:
        unknown = [name for name in columns if header.count(name) != 1]
        if unknown or len(columns) not in (2, 3):
            what = f"no one column {unknown[0]!r}" if unknown else "no columns for " + ",".join(columns)
            raise UserError(f"{path} has {what}; it has {_shown(header)}. {_EXPECTED}")
        return dict(zip(_NAMES, map(header.index, columns), strict=False))
    places_of = {
        what: [place for place, name in enumerate(header) if name.lower() in names] for what, names in _NAMES.items()
    }
    for what, places in places_of.items():
        if len(places) > 1 or (not places and what != "part"):
            kind = "several columns that could be its" if places else "no column for the"
            raise UserError(f"{path} has {kind} {what}; it has {_shown(header)}. {_EXPECTED}")
    return {what: places[0] for what, places in places_of.items() if places}


def _shown(header: list[str]) -> str:
    return ", ".join(name[:40] for name in header[:20]) or "none"


def _line(path: Path, number: int, values: dict[str, str]) -> _Line:
    label, part = values["label"].strip(), values.get("part", "train").strip()
    for what, value in (("path", values["path"].strip()), ("label", label), ("part", part)):
        if not value:
            raise UserError(f"line {number} of {path} has no {what}. Fill it in, or remove the line.")
    if not is_class_name(label):
        raise UserError(
            f"line {number} of {path}: {label[:80]!r} cannot be a class's name, which is at most 255 characters that "
            "can be shown, without a slash. Change it."
        )
    if part.lower() not in PARTS:
        raise UserError(
            f"line {number} of {path}: unknown part {part[:80]!r}. Known: train, val (or valid, validation) and test."
        )
    return _Line(number, values["path"], label, PARTS[part.lower()])


def _once(lines: Iterator[_Line]) -> tuple[list[_Line], int]:
    """Each line that says something new, and how many do not."""
    seen: dict[tuple[str, str, int], _Line] = {}
    count = 0
    for line in lines:
        seen.setdefault((line.path, line.label, line.part), line)
        count += 1
    return list(seen.values()), count - len(seen)


def _status(path: str) -> _Status:
    try:
        status = os.stat(path)  # noqa: PTH116 - a million Paths are slow
    except OSError:
        return _Status("", None)  # decoding says why
    except ValueError:
        return _Status("", "no such file (its path holds a NUL character)")
    plain = stat.S_ISREG(status.st_mode)  # not pipes and devices: opening one could wait for ever
    return _Status(stamp_of(status), None if plain else "no plain file")


def _fingerprint(content: bytes, statuses: list[_Status]) -> str:
    files = "\0".join(status.stamp for status in statuses)
    return hashlib.sha256(hashlib.sha256(content).digest() + files.encode()).hexdigest()
