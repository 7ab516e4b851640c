"""What an image folder holds: which files, of which class, in which part, found by listing alone."""

from __future__ import annotations

import hashlib
import os
import statistics
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from csham.data.decode import image_suffixes, open_image
from csham.data.split import TEST, TRAIN, VALIDATION
from csham.errors import UserError

__all__ = ["Listing", "default_image_size", "image_files", "is_class_name", "scan"]

_EXPECTED = "An image folder holds train/<class>/* with test/<class>/* or val/<class>/*, or <class>/* alone."
_VALIDATION_NAMES = {"val", "valid", "validation"}
_PART_NAMES = {"train", "training", "test", "testing", *_VALIDATION_NAMES}
_SILENT = {"thumbs.db", "desktop.ini", "__macosx"}  # what operating systems leave behind
_LONGEST_NAME = 255  # characters, where file systems allow as many bytes
_SIZES = (32, 64, 96, 128, 160, 224)


class _File(NamedTuple):
    path: str  # below the root
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """The images of a folder, in a stable order: by part, class and path.

    ``files`` are paths below ``root``, with ``labels`` (N,) int64 and ``parts`` (N,) uint8 beside them;
    ``fingerprint`` changes when a file is added, removed, renamed or modified.
    """

    root: Path
    classes: tuple[str, ...]
    files: list[str]
    labels: np.ndarray
    parts: np.ndarray
    fingerprint: str
    ignored: int
    notes: list[str] = field(default_factory=list)

    def paths(self) -> list[str]:
        """Full paths of the files."""
        return [os.path.join(self.root, file) for file in self.files]  # noqa: PTH118 - a million Paths are slow


def scan(root: Path) -> Listing:
    """List an image folder and check that it can be trained on.

    Args:
        root: ``train/<class>/**`` with ``test/<class>/**`` or ``val/<class>/**`` (with both, ``val`` is the
            validation part; ``valid`` and ``validation`` are other names of it), ``train/<class>/**`` alone, or
            ``<class>/**`` alone. Links are followed.

    Raises:
        UserError: No images, fewer than two classes, an empty class, classes that differ between parts, or a
            folder that cannot be read.
    """
    try:
        return _scan(root)
    except OSError as err:
        raise UserError(f"cannot read {err.filename or root}: {err.strerror}. Check its permissions.") from err


def image_files(folder: str) -> Iterator[str]:
    """List the image files anywhere below a folder, sorted by path, while holding the names of few folders at a time.

    A file counts by its name; links are followed. A folder that cannot be listed is given in place of its files.
    """
    unlisted: list[str] = []
    for entry in _walk(folder, (), unlisted.append):
        yield from unlisted
        unlisted.clear()
        if _is_image(entry.name):
            yield entry.path
    yield from unlisted


def default_image_size(paths: Sequence[str]) -> int:
    """Largest usual image size that the median shorter side of a sample of images fills; at least 32 px."""
    sample = paths[:: max(1, len(paths) // 200)]
    sides = []
    for path in sample:
        try:
            with open_image(path) as image:
                sides.append(min(image.size))
        except Exception:  # noqa: S112 - decoding reports it, with the reason
            continue
    median = statistics.median(sides) if sides else 0
    return max((size for size in _SIZES if size <= median), default=_SIZES[0])


def _scan(root: Path) -> Listing:
    folders, notes = _part_folders(root)
    found = {part: _classes_of(folder) for part, folder in folders.items()}
    classes = sorted(found[TRAIN])
    _check_classes(root, folders, found)

    files: list[_File] = []
    labels: list[int] = []
    parts: list[int] = []
    ignored = outside = 0
    for folder in {root, *folders.values()}:
        ignored_here, outside_here = _count_outside(folder)
        ignored, outside = ignored + ignored_here, outside + outside_here
    for part, folder in folders.items():
        for label, name in enumerate(classes):
            members, skipped = _images_below(root, folder / name)
            if not members:
                raise UserError(_no_images(folder / name, skipped))
            files += members
            labels += [label] * len(members)
            parts += [part] * len(members)
            ignored += skipped
    if outside:
        notes.append(f"{outside} image files lie in no class folder and were left out")
    return Listing(
        root=root,
        classes=tuple(classes),
        files=[file.path for file in files],
        labels=np.array(labels, np.int64),
        parts=np.array(parts, np.uint8),
        fingerprint=_fingerprint(files),
        ignored=ignored,
        notes=notes,
    )


def _part_folders(root: Path) -> tuple[dict[int, Path], list[str]]:
    """Folder of each part that is there, and notes about folders that look like a part but are none."""
    names = _subfolders(root)
    by_name = {name.lower(): root / name for name in names}
    others = set(by_name) - {"train", "test", *_VALIDATION_NAMES}
    # A class may be called "train" (the vehicle): then it holds images, and other classes stand beside it.
    if "train" not in by_name or (others and not _subfolders(by_name["train"])):
        if names and set(by_name) <= _PART_NAMES:
            raise UserError(f"{root} holds only {', '.join(names)}, but no train/. {_EXPECTED}")
        return {TRAIN: root}, []
    folders = {TRAIN: by_name["train"]}
    validation = [name for name in names if name.lower() in _VALIDATION_NAMES]
    if len(validation) > 1:
        raise UserError(
            f"{root} holds {' and '.join(validation)}, of which each could be the validation part. Keep one of them "
            "there."
        )
    if validation:
        folders[VALIDATION if "test" in by_name else TEST] = root / validation[0]
    if "test" in by_name:
        folders[TEST] = by_name["test"]
    left_out = [name for name in names if name.lower() in others]
    notes = [f"only train, test and val are read; left out: {', '.join(left_out[:5])}"] if left_out else []
    return folders, notes


def _check_classes(root: Path, folders: dict[int, Path], found: dict[int, list[str]]) -> None:
    train = found[TRAIN]
    if not train:
        raise UserError(_no_class_folders(folders[TRAIN]))
    unnamed = next(
        (folders[part] / name for part, names in found.items() for name in names if not is_class_name(name)), None
    )
    if unnamed is not None:
        raise UserError(
            f"{os.fspath(unnamed)!r}: the name of a class folder is the name of its class, and this one holds control "
            "characters or bytes that are no UTF-8, which cannot be shown. Rename the folder."
        )
    for part, names in found.items():
        missing = [f"{folders[part].name}/{name}" for name in train if name not in set(names)]
        extra = [f"{folders[TRAIN].name}/{name}" for name in names if name not in set(train)]
        if missing or extra:
            raise UserError(
                f"the classes of {folders[TRAIN]} and {folders[part]} differ. Missing: "
                f"{_some(missing + extra)}. Both need the same class folders."
            )
    if len(train) == 1:
        inner = folders[TRAIN] / train[0]
        hint = f" Did you mean {inner}?" if len(_subfolders(inner)) > 1 else " At least two are needed."
        raise UserError(f"{folders[TRAIN]} holds only one class, {train[0]!r}.{hint}")


def is_class_name(value: object) -> bool:
    """Return whether something is a name that a class folder may have: text that can be printed, without ``/``."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or value in (".", "..") or "/" in value:
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def _no_class_folders(folder: Path) -> str:
    _, images = _count_outside(folder)
    what = f"holds {images} images but no class folders" if images else "holds no images"
    return f"{folder} {what}. {_EXPECTED}"


def _no_images(folder: Path, skipped: int) -> str:
    why = f" ({skipped} files there are no images by their name)" if skipped else ""
    return f"class {folder.name!r} is empty: no images in {folder}{why}. Add images or remove the folder."


def _classes_of(folder: Path) -> list[str]:
    return sorted(_subfolders(folder))


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _silent(entry.name) and entry.is_dir())


def _count_outside(folder: Path) -> tuple[int, int]:
    """Files directly in a part's folder, and how many of them are images: they belong to no class."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _silent(entry.name) and entry.is_file()]
    return len(names), sum(_is_image(name) for name in names)


def _images_below(root: Path, folder: Path) -> tuple[list[_File], int]:
    """Images anywhere below a folder, sorted by path, and how many other files there were."""
    skipped = 0
    images = []
    cut = len(str(root)) + (0 if str(root).endswith(os.sep) else 1)
    for entry in _walk(str(folder), ()):
        if _is_image(entry.name):
            images.append(_stat(entry, entry.path[cut:]))
        else:
            skipped += 1
    return sorted(images), skipped


def _walk(
    folder: str, above: tuple[tuple[int, int], ...], unlisted: Callable[[str], None] | None = None
) -> Iterator[os.DirEntry[str]]:
    """Files below a folder, sorted by path; a link back to a folder that is being walked is not followed again.

    A folder that cannot be listed is told to ``unlisted``; without it that is an error.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - the walk is over strings
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not _silent(entry.name)), key=_path_order)
    except OSError:
        if unlisted is None:
            raise
        unlisted(folder)
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(entry.path, (*above, identity), unlisted)
        elif _broken_link(entry) or entry.is_file():
            yield entry  # not pipes and sockets: opening one could wait for ever


def _path_order(entry: os.DirEntry[str]) -> str:
    """Key that sorts a folder's entries as their paths, and those below them, sort."""
    return entry.name + os.sep if _is_folder(entry) else entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not _broken_link(entry) and entry.is_dir()  # asking a link to itself is an error


def _stat(entry: os.DirEntry[str], path: str) -> _File:
    try:
        status = entry.stat()
    except OSError:
        return _File(path, -1, 0)  # a broken link: decoding will report it
    return _File(path, status.st_size, status.st_mtime_ns)


def _broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110


def _silent(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SILENT


def _is_image(name: str) -> bool:
    _, dot, ending = name.rpartition(".")
    return dot + ending.lower() in image_suffixes()


def _fingerprint(files: list[_File]) -> str:
    lines = "\0".join(f"{file.path}\0{file.size}\0{file.mtime_ns}" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
