"""Parquet files of images as Hugging Face's ``datasets`` writes them: one file, or a folder of shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from csham.data.decode import Content, Encoded, Unreadable
from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace, chunks_of, default_image_size
from csham.data.sources.columns import PART_COLUMNS, check_classes, path_and_columns, settled_parts
from csham.data.sources.folder import image_files
from csham.data.sources.layout import is_class_name, is_silent, note_background, stamp_of
from csham.data.split import PARTS, TRAIN
from csham.errors import UserError
from csham.words import counted

__all__ = ["ParquetSource", "need_pyarrow", "reading"]

_ENDING = ".parquet"
_LABEL_NAMES = ("label", "labels", "class", "target")
_PART = re.compile(rf"(?:^|[^a-z])({'|'.join(sorted(PARTS, key=len, reverse=True))})(?:[^a-z]|$)")
_ROWS_AT_ONCE = 16
_SAMPLED_GROUPS, _SAMPLED_ROWS = 8, 25
_MOST_IN_ALL, _MOST_RATIO = 2**30, 100  # bytes unpacked, and how many times the file's size


class ParquetSource(Source):
    """Rows of an encoded image and a label; their part a column says, or the file's name or its folder's."""

    def __init__(self, path: Path, files: list[Path], columns: tuple[str, ...] = ()) -> None:
        need_pyarrow(path)
        self._path, self._shards = path, [_open_shard(file, columns) for file in files]
        self.listing: Listing = _list_rows(path, self._shards)
        self.name = path.name
        self.location = ":".join([str(path), *([",".join(columns)] if columns else [])])
        self.fingerprint = _fingerprint(files)

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Take a Parquet file, or a folder that holds some and no images; perhaps with columns behind it."""
        path, columns = path_and_columns(data)
        if path is None:
            return None
        if path.is_file():
            return cls(path, [path], columns) if path.name.lower().endswith(_ENDING) else None
        try:
            files = sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern + _ENDING) if file.is_file())
            files = [file for file in files if not any(map(is_silent, file.relative_to(path).parts))]
        except OSError:
            return None  # for the folder to tell
        return cls(path, files, columns) if files and next(image_files(str(path)), None) is None else None

    def default_size(self) -> int:
        """Largest usual size that the images fill."""
        shards = [(shard, group) for shard in self._shards for group in range(shard.groups)]
        chosen = shards[:: max(1, len(shards) // _SAMPLED_GROUPS)]
        contents = [content for shard, group in chosen for content in islice(_images_of(shard, [group]), _SAMPLED_ROWS)]
        return default_image_size([content for content in contents if isinstance(content, Encoded)])

    def load(self, work: Workplace) -> Images:
        """Read the images shard by shard."""

        def chunks(most: int) -> Iterator[Chunk]:
            return chunks_of(enumerate(content for shard in self._shards for content in _images_of(shard)), most)

        return Images(self.listing, chunks)

    def objection(self, place: Path) -> str | None:
        """With a picture in it, which every run draws, the folder would be taken for one of images."""
        return f"{place} would lie in {self._path}, whose Parquet files are read while no pictures lie beside them."


@dataclass
class _Shard:
    """A file whose columns are chosen; ``names`` are the classes that its schema names, by number."""

    path: Path
    image: str
    label: str
    part: str | None
    names: list[str] | None
    rows: int
    groups: int


def need_pyarrow(path: Path) -> None:
    """Refuse Parquet where nothing reads it."""
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415
    except ImportError as err:
        raise UserError(f"{path} is Parquet, which needs pyarrow: pip install 'csham[parquet]'.") from err


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what to do about a file that cannot be read."""
    try:
        yield
    except UserError:
        raise
    except PermissionError as err:
        raise UserError(f"cannot read {path}: {err.strerror}. Check its permissions.") from err
    except Exception as err:  # pyarrow raises errors of its own and Python's
        words = " ".join(str(err).split())[:120] or type(err).__name__
        raise UserError(f"{path} cannot be read as Parquet ({words}). Copy or download it again.") from err


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow.parquet  # noqa: PLC0415

    with reading(path), pyarrow.parquet.ParquetFile(path) as file:
        yield file


def _open_shard(path: Path, columns: tuple[str, ...]) -> _Shard:
    with _opened(path) as file:
        size, rows = path.stat().st_size, file.metadata.num_rows
        groups = file.metadata.num_row_groups
        # Not column by column: of a damaged one's, pyarrow 26 ends the process.
        unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(groups))
        if not 0 <= rows <= size or unpacked > max(_MOST_IN_ALL, _MOST_RATIO * size):
            raise UserError(
                f"{path} says that its {size:,} bytes hold {rows:,} rows of {unpacked:,} bytes (a decompression "
                "bomb?): refused. If you trust it, write it again with less compression."
            )
        schema = file.schema_arrow
        features = _features(schema.metadata or {})
        image, label = _columns(path, schema, features, columns)
        said = [name for name in schema.names if name.lower() in PART_COLUMNS and name != label]
        part = said[0] if said and len(columns) < 2 else None  # whoever names both columns has no other read
        names = _names(path, features.get(label, {}))
    return _Shard(path, image, label, part, names, rows, groups)


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """Return what ``datasets`` says of the columns, as far as it does."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _columns(path: Path, schema: Any, features: dict[str, dict[str, Any]], asked: tuple[str, ...]) -> tuple[str, str]:
    """Choose the columns of images and of labels: by what the user names, by their features, by their names."""
    unknown = [name for name in asked if name not in schema.names]
    if unknown or len(asked) > 2:
        what = f"no column {unknown[0]!r}" if unknown else "no columns for " + ",".join(asked)
        raise UserError(
            f"{path} has {what}; it has {_shown(schema)}. Name one of labels, or two, of images and labels."
        )
    images = [field.name for field in schema if _holds_images(field.type)]
    images = [name for name in images if features.get(name, {}).get("_type") == "Image"] or images
    labels = [field.name for field in schema if features.get(field.name, {}).get("_type") == "ClassLabel"]
    named = [field.name for field in schema if field.name in _LABEL_NAMES]
    labels = labels or [name for name in named if _holds_labels(schema.field(name).type)] or named
    if asked:
        labels = [asked[-1]]
        images = [name for name in asked[:-1] if _holds_images(schema.field(name).type)] if asked[1:] else images
    for what, names in (("images", images), ("labels", labels)):
        if len(names) != 1:
            columns = f"{len(names)} columns that could be its {what}" if names else f"no column of {what}"
            raise UserError(
                f"{path} has {columns}; it has {_shown(schema)}. Name the one of labels behind the path, such as "
                f"DATA:{labels[0] if labels else 'label'}, or both as DATA:IMAGE,LABEL."
            )
    kind = schema.field(labels[0]).type
    if not _holds_labels(kind):
        raise UserError(
            f"{path}: the labels in column {labels[0]!r} are {kind}, where whole numbers or text name a class. "
            "Write the file again with such labels, or name another column."
        )
    return images[0], labels[0]


def _holds_images(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415

    if types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), None)
    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types  # noqa: PLC0415

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _shown(schema: Any) -> str:
    return ", ".join(f"{field.name[:40]} ({str(field.type)[:40]})" for field in list(schema)[:20]) or "none"


def _names(path: Path, feature: dict[str, Any]) -> list[str] | None:
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(map(is_class_name, names)) or len(set(names)) < len(names):
        raise UserError(
            f"the names of classes in {path} are none: each must be another text of at most 255 characters that can be "
            "shown, without a slash. Write the file again with such names."
        )
    return names


def _list_rows(path: Path, shards: list[_Shard]) -> Listing:
    root = path if path.is_dir() else path.parent
    files, labels, parts = [], [], []
    columns_say = any(shard.part for shard in shards)
    for shard, part in zip(shards, [None] * len(shards) if columns_say else _parts(path, shards), strict=True):
        name = shard.path.relative_to(root).as_posix()
        files += [f"{name} row {row}" for row in range(shard.rows)]
        labels += [_label(shard, row, value) for row, value in enumerate(_values(shard, shard.label))]
        parts.append(_parts_of_rows(shard) if part is None else np.full(shard.rows, part, np.uint8))
    if not labels:
        raise UserError(f"{path} holds no rows.")
    classes, notes = _classes(shards, set(labels))
    number = {name: label for label, name in enumerate(classes)}
    listing = Listing(
        root, classes, files, np.array([number[name] for name in labels]), settled_parts(np.concatenate(parts), path)
    )
    check_classes(classes, listing.labels, listing.parts, path)
    listing.notes = notes
    note_background(listing)
    return listing


def _parts(path: Path, shards: list[_Shard]) -> list[int]:
    """Part of each file, by its name or else its folder's; all train where none says so."""
    if path.is_file():
        return [TRAIN]
    words = [_PART.search(shard.path.stem.lower()) or _PART.search(shard.path.parent.name.lower()) for shard in shards]
    if not any(words):
        return [TRAIN] * len(shards)
    unnamed = next((shard.path for shard, word in zip(shards, words, strict=True) if word is None), None)
    if unnamed is not None:
        raise UserError(
            f"{unnamed} does not say its part as the other files do. Rename it, such as train-{unnamed.name}, or "
            "move it away."
        )
    return [PARTS[word[1]] for word in words if word is not None]


def _values(shard: _Shard, column: str) -> list[Any]:
    with _opened(shard.path) as file:
        values: list[Any] = file.read(columns=[column]).column(0).to_pylist()
    if len(values) != shard.rows:
        raise UserError(
            f"{shard.path} holds {len(values):,} values of {column!r} for {shard.rows:,} rows. Copy or download it "
            "again."
        )
    return values


def _parts_of_rows(shard: _Shard) -> np.ndarray:
    """Part of each row, by the column that says it."""
    if shard.part is None:
        raise UserError(
            f"{shard.path} has no column {' or '.join(PART_COLUMNS)} as the other files have. Write it again with one, "
            "or move it away."
        )
    values = _values(shard, shard.part)
    unknown = next((row for row, value in enumerate(values) if str(value).lower() not in PARTS), None)
    if unknown is not None:
        raise UserError(
            f"row {unknown} of {shard.path}: unknown part {str(values[unknown])[:80]!r} in column {shard.part!r}. "
            "Known: train, val (or valid, validation) and test. If that column says something else, name those to "
            "read: DATA:IMAGE,LABEL."
        )
    return np.array([PARTS[value.lower()] for value in values], np.uint8)


def _label(shard: _Shard, row: int, value: Any) -> str:
    if isinstance(value, int) and shard.names is not None:
        value = shard.names[value] if 0 <= value < len(shard.names) else None
    name = str(value) if isinstance(value, int) else value
    if not is_class_name(name):
        raise UserError(
            f"row {row} of {shard.path} has no label that names a class (column {shard.label!r}). Images without "
            "labels, as some test parts have, cannot be used: move such files away."
        )
    return name


def _classes(shards: list[_Shard], labels: set[str]) -> tuple[tuple[str, ...], list[str]]:
    """Classes in the order that the schema gives, numbers by size, other names by the alphabet; and what to note."""
    named = next((shard.names for shard in shards if shard.names is not None), None)
    if named is None:
        numbers = all(re.fullmatch(r"-?\d{1,20}", name) for name in labels)
        return tuple(sorted(labels, key=int) if numbers else sorted(labels)), []
    known = [name for name in named if name in labels]
    empty = [name for name in named if name not in labels]
    notes = [f"left out {counted(len(empty), 'class', 'es')} without images: {', '.join(empty[:5])}"] if empty else []
    return (*known, *sorted(labels.difference(known))), notes


def _images_of(shard: _Shard, groups: list[int] | None = None) -> Iterator[Content]:
    with _opened(shard.path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[shard.image]):
            for value in batch.column(0).to_pylist():
                yield _content(value)


def _content(value: Any) -> Content:
    data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if data is None:
        return Unreadable("", "no bytes in this row" + (" but only a path" if name else ""))
    return Encoded(name if isinstance(name, str) else "", data)


def _fingerprint(files: list[Path]) -> str:
    lines = "\0".join(f"{file}\0{stamp_of(file.stat())}" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
