"""Meaning of folders of images, on a disk or in an archive: which is a part, which a class, and what cannot be."""

from __future__ import annotations

import hashlib
import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from csham.data.decode import image_suffixes
from csham.data.sources.base import Listing
from csham.data.split import PARTS, TEST, TRAIN, VALIDATION
from csham.errors import UserError
from csham.words import counted, some

__all__ = [
    "BACKGROUND",
    "File",
    "Tree",
    "is_class_name",
    "is_image",
    "is_silent",
    "list_images",
    "note_background",
    "note_unread",
    "part_folders",
    "stamp_of",
    "unread_kind",
]

EXPECTED = "An image folder holds train/<class>/* with test/<class>/* or val/<class>/*, or <class>/* alone."
BACKGROUND = "BACKGROUND_Google"  # Caltech-101's assorted pictures
_VALIDATION_NAMES = {name for name, part in PARTS.items() if part == VALIDATION}
_SILENT = {"thumbs.db", "desktop.ini", "__macosx"}  # what operating systems leave behind
_PHOTOGRAPHS = {  # of telephones and cameras, few of which Pillow reads
    *(".3fr", ".arw", ".avif", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".heic", ".heics", ".heif", ".heifs"),
    *(".hif", ".iiq", ".jxl", ".kdc", ".mef", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2"),
    *(".srf", ".srw", ".x3f"),
}
_LONGEST_NAME = 255  # characters, where file systems allow as many bytes


class File(NamedTuple):
    """A file by its path below the root, with what tells that it is another (:func:`stamp_of`)."""

    path: str
    stamp: str


def stamp_of(status: os.stat_result) -> str:
    """Write down what changes with a file, and where another takes its name: moved files keep their size and mtime."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


class Tree(Protocol):
    """Folders and files below a root, without what operating systems leave behind."""

    root: Path

    def subfolders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted."""

    def files(self, folder: Path) -> list[str]:
        """Names of the files directly in a folder."""

    def images(self, folder: Path) -> tuple[list[File], int]:
        """Images anywhere below a folder, sorted by path, and how many other files there are."""


def list_images(tree: Tree) -> Listing:
    """List the images of a tree and check that they can be trained on.

    Raises:
        UserError: No images, fewer than two classes, an empty class, or classes that differ between parts.
    """
    root = tree.root
    folders, notes = part_folders(tree)
    names_in = {part: tree.subfolders(folder) for part, folder in folders.items()}
    classes = sorted(names_in[TRAIN])
    _check_classes(tree, folders, names_in)

    files: list[File] = []
    unread: list[File] = []
    labels: list[int] = []
    parts: list[int] = []
    ignored = outside = 0
    for folder in {root, *folders.values()}:
        ignored_here, outside_here = _count_outside(tree, folder)
        ignored, outside = ignored + ignored_here, outside + outside_here
    for part, folder in folders.items():
        for label, name in enumerate(classes):
            found, skipped = tree.images(folder / name)
            members = [file for file in found if unread_kind(file.path) is None]
            if not members:
                raise UserError(_no_images(folder / name, skipped, found))
            files += members
            unread += [file for file in found if unread_kind(file.path) is not None]
            labels += [label] * len(members)
            parts += [part] * len(members)
            ignored += skipped
    if unread:
        notes.append(note_unread(_kinds(unread)))
    if outside:
        lie = "file lies in no class folder and was" if outside == 1 else "files lie in no class folder and were"
        notes.append(f"{outside:,} image {lie} left out")
    return Listing(
        root=root,
        classes=tuple(classes),
        files=[file.path for file in files],
        labels=np.array(labels, np.int64),
        parts=np.array(parts, np.uint8),
        fingerprint=_fingerprint(files + unread),  # of those, too, since what is packed holds the note on them
        ignored=ignored,
        notes=notes,
    )


def note_background(listing: Listing) -> None:
    """Mention Caltech-101's background class, which most leave out."""
    if BACKGROUND in listing.classes:
        listing.notes.append(f"{BACKGROUND} is one of the classes; results on Caltech-101's 101 classes are without it")


def is_class_name(value: object) -> bool:
    """Return whether something is a name that a class folder may have: text that can be printed, without ``/``."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or value in (".", "..") or "/" in value:
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def is_image(name: str) -> bool:
    """Return whether a file counts as an image by its name, be it a photograph that cannot be read."""
    ending = _ending(name)
    return ending in image_suffixes() or ending in _PHOTOGRAPHS


def unread_kind(name: str) -> str | None:
    """Ending of a photograph that Pillow, with what plugins it has, cannot read; None for any other file."""
    ending = _ending(name)
    return ending if ending in _PHOTOGRAPHS and ending not in image_suffixes() else None


def note_unread(kinds: Counter[str]) -> str:
    """Say how many photographs of which endings were left out."""
    files = "1 file" if kinds.total() == 1 else f"{kinds.total():,} files"
    counts = ", ".join(f"{kinds[kind]:,} {kind}" for kind in sorted(kinds))
    these = "this kind" if len(kinds) == 1 else "these kinds"
    return f"{files} left out by name: {counts}; Pillow cannot read photographs of {these}: convert them to JPEG"


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    return dot + ending.lower()


def is_silent(name: str) -> bool:
    """Return whether a file or folder of this name is passed over without a word."""
    return name.startswith(".") or name.lower() in _SILENT


def part_folders(tree: Tree) -> tuple[dict[int, Path], list[str]]:
    """Folder of each part that is there, and notes about folders that look like a part but are none.

    Raises:
        UserError: There is no training part, or two folders could each be one part.
    """
    root, names = tree.root, tree.subfolders(tree.root)
    by_name = {name.lower(): root / name for name in names}
    others = set(by_name) - {"train", "test", *_VALIDATION_NAMES}
    # A class may be called "train" (the vehicle): then it holds images, and other classes stand beside it.
    if "train" not in by_name or (others and not tree.subfolders(by_name["train"])):
        if names and set(by_name) <= PARTS.keys():
            raise UserError(f"{root} holds only {', '.join(names)}, but no train/. {EXPECTED}")
        return {TRAIN: root}, []
    for part in ("train", "test"):
        same = [name for name in names if name.lower() == part]
        if len(same) > 1:
            raise UserError(f"{root} holds {' and '.join(same)}, each of which could be the {part} part. Keep one.")
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


def _check_classes(tree: Tree, folders: dict[int, Path], names_in: dict[int, list[str]]) -> None:
    train = names_in[TRAIN]
    if not train:
        raise UserError(_no_class_folders(tree, folders[TRAIN]))
    unnamed = next(
        (folders[part] / name for part, names in names_in.items() for name in names if not is_class_name(name)), None
    )
    if unnamed is not None:
        encoding = sys.getfilesystemencoding()
        utf8 = encoding == "utf-8"
        advice = "Rename the folder." if utf8 else f"Names are read as {encoding} here: set PYTHONUTF8=1."
        raise UserError(
            f"{os.fspath(unnamed)!r}: the name of a class folder is the name of its class, and this one holds control "
            f"characters or bytes that are no {encoding.upper()}, which cannot be shown. {advice}"
        )
    for part, names in names_in.items():
        missing = [f"{folders[part].name}/{name}" for name in train if name not in set(names)]
        extra = [f"{folders[TRAIN].name}/{name}" for name in names if name not in set(train)]
        if missing or extra:
            raise UserError(
                f"the classes of {folders[TRAIN]} and {folders[part]} differ. Missing: "
                f"{some(missing + extra)}. Both need the same class folders."
            )
    if len(train) == 1:
        inner = folders[TRAIN] / train[0]
        hint = f" Did you mean {inner}?" if len(tree.subfolders(inner)) > 1 else " At least two are needed."
        raise UserError(f"{folders[TRAIN]} holds only one class, {train[0]!r}.{hint}")


def _no_class_folders(tree: Tree, folder: Path) -> str:
    _, images = _count_outside(tree, folder)
    what = f"holds {counted(images, 'image')} but no class folders" if images else "holds no images"
    return f"{folder} {what}. {EXPECTED}"


def _no_images(folder: Path, skipped: int, unread: list[File]) -> str:
    reasons = [f"{counted(skipped, 'file')} there without an image's ending"] if skipped else []
    reasons += [note_unread(_kinds(unread))] if unread else []
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"class {folder.name!r} is empty: no images in {folder}{why}. Add images or remove the folder."


def _kinds(unread: list[File]) -> Counter[str]:
    return Counter(_ending(file.path) for file in unread)


def _count_outside(tree: Tree, folder: Path) -> tuple[int, int]:
    """Count other files directly in a part's folder, and images, which belong to no class."""
    names = tree.files(folder)
    images = sum(map(is_image, names))
    return len(names) - images, images


def _fingerprint(files: list[File]) -> str:
    lines = "\0".join(f"{file.path}\0{file.stamp}" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
