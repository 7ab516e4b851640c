"""A folder of images on the disk, found by listing alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace, chunks_of, default_image_size
from csham.data.sources.layout import File, is_image, is_silent, list_images, note_background, part_folders, stamp_of
from csham.errors import UserError

__all__ = ["FolderSource", "FolderTree", "class_folders", "existing", "image_files", "scan"]


class FolderSource(Source):
    """``train/<class>/*`` with ``test/<class>/*`` or ``val/<class>/*``, or ``<class>/*`` alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.listing: Listing = scan(root)
        note_background(self.listing)
        self.name = root.name or "images"
        self.location = str(root)
        self.fingerprint = self.listing.fingerprint

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Take whatever folder there is."""
        root = existing(data)
        return cls(root) if root is not None and root.is_dir() else None

    def default_size(self) -> int:
        """Largest usual size that the images fill."""
        return default_image_size(self.listing.paths())

    def load(self, work: Workplace) -> Images:
        """Give the paths of the files."""
        return folder_images(self.listing)

    def objection(self, place: Path) -> str | None:
        """Results among the class folders would become a class, or images of one."""
        folders, _ = part_folders(FolderTree(self._root))
        if not any(place.is_relative_to(folder) for folder in folders.values()):
            return None
        return f"{place} would lie among the images of {self._root}, as a class of its own or as images of one."


def existing(data: str | Path) -> Path | None:
    """Full path of the file or folder that the user named, None where there is none."""
    try:
        path = Path(data).expanduser().resolve()
        return path if str(data) and path.exists() else None  # an empty string would be the current folder
    except (OSError, RuntimeError, ValueError):  # a path that cannot exist, or a link to itself
        return None


def class_folders(images: Iterable[str], place: Path) -> list[Path]:
    """Folders around images that a user named, where every folder but ``place`` seems to be a class.

    Args:
        images: Files and folders; ``-`` is neither.
        place: For results, with its full path; folders that it does not lie in are not asked.
    """
    paths = [path for name in images if name != "-" and (path := existing(name)) is not None]
    folders = [path if path.is_dir() else path.parent for path in paths]
    around = dict.fromkeys(folder for inner in folders for folder in (inner, inner.parent) if folder in place.parents)
    return [folder for folder in around if _holds_classes(folder, place)]


def _holds_classes(root: Path, place: Path) -> bool:
    """Return True if two folders or more have images directly in them, any other folder too, and the root has none."""

    def has_images(folder: Path) -> bool:
        return any(map(is_image, tree.files(folder)))

    tree = FolderTree(root)
    with suppress(OSError):
        folders = [root / name for name in tree.subfolders(root) if root / name != place]
        return len(folders) > 1 and not has_images(root) and all(map(has_images, folders))
    return False


def folder_images(listing: Listing) -> Images:
    """Give the images of files on the disk."""

    def chunks(most: int) -> Iterator[Chunk]:
        return chunks_of(enumerate(listing.paths()), most)

    return Images(listing, chunks)


class FolderTree:
    """A folder on the disk; links are followed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def subfolders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted."""
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_silent(entry.name) and entry.is_dir())

    def files(self, folder: Path) -> list[str]:
        """Names of the files directly in a folder."""
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not is_silent(entry.name) and entry.is_file()]

    def images(self, folder: Path) -> tuple[list[File], int]:
        """Images anywhere below a folder, sorted by path, and how many other files there are."""
        skipped = 0
        images = []
        cut = len(str(self.root)) + (0 if str(self.root).endswith(os.sep) else 1)
        for entry in _walk(str(folder), ()):
            if is_image(entry.name):
                images.append(_stat(entry, entry.path[cut:]))
            else:
                skipped += 1
        return sorted(images), skipped


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
        return list_images(FolderTree(root))
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
        if is_image(entry.name):
            yield entry.path
    yield from unlisted


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
        with os.scandir(folder) as listed:
            entries = sorted((entry for entry in listed if not is_silent(entry.name)), key=_path_order)
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


def _stat(entry: os.DirEntry[str], path: str) -> File:
    try:
        status = entry.stat()
    except OSError:
        return File(path, "")  # a broken link: decoding will report it
    return File(path, stamp_of(status))


def _broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110
