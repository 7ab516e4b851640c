"""Caltech-101, from its published archive."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from csham.data.downloads import Archive, fetch
from csham.data.sources.base import Images, Workplace
from csham.data.sources.folder import folder_images, scan
from csham.data.sources.layout import BACKGROUND
from csham.data.sources.named import NamedSource
from csham.errors import UserError

__all__ = ["Caltech101Source"]

# Whether the background class, 467 assorted pictures, is kept as a 102nd: torchvision leaves it out as no real class,
# TensorFlow Datasets and the benchmarks made from it keep it.
_BACKGROUND_KEPT = {"caltech101": False, "caltech101-background": True}

# As torchvision has them since 0.24; the places of earlier versions are gone.
URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
MD5 = "3138e1922a9193bfa496528edbbc45d0"
_INNER = "101_ObjectCategories"


class Caltech101Source(NamedSource):
    """Caltech-101 with or without its background class; unpacked while it is packed."""

    NAMES = tuple(_BACKGROUND_KEPT)

    def load(self, work: Workplace) -> Images:
        """Unpack the archive."""
        _unpack_all(work.downloads, work.scratch, background=_BACKGROUND_KEPT[self.name], say=work.say)
        listing = scan(work.scratch)
        listing.shown = listing.files
        return folder_images(listing)


def _unpack_all(downloads: Path, target: Path, *, background: bool, say: Callable[[str], None]) -> None:
    """Unpack the images into ``target/<class>/*.jpg``, downloading the archive first unless it is there.

    Source: Li, Andreetto, Ranzato and Perona, "Caltech 101", CaltechDATA, doi 10.22002/D1.20086.
    """
    archive = Archive("caltech101", URL, MD5, downloads / "caltech-101.zip", 137)
    fetch(archive, say)
    say("unpacking caltech101")
    try:
        with (
            zipfile.ZipFile(archive.path) as outer,
            outer.open(_inner_name(outer)) as inner,
            tarfile.open(fileobj=inner, mode="r|gz") as images,
        ):
            for member in images:
                _unpack(images, member, target, background)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as err:
        raise UserError(
            f"{archive.path} cannot be unpacked ({err}). Remove it, to download it again, or give an image folder."
        ) from err


def _inner_name(outer: zipfile.ZipFile) -> str:
    wanted = f"{_INNER}.tar.gz"
    names = [name for name in outer.namelist() if PurePosixPath(name).parts[-2:] == ("caltech-101", wanted)]
    if not names:
        raise zipfile.BadZipFile(f"it holds no {wanted}")
    return names[0]


def _unpack(images: tarfile.TarFile, member: tarfile.TarInfo, target: Path, background: bool) -> None:
    """Write one file below ``target``; nothing but plain files and folders with plain names is let in."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not (member.isfile() or member.isdir()):
        raise UserError(
            f"the archive of caltech101 holds {member.name!r}, which is no plain file or lies outside its folder: "
            "refused, and nothing of it is kept. Remove the archive, or give an image folder."
        )
    if member.isdir() or len(path.parts) != 3 or path.parts[0] != _INNER:
        return
    name = path.parts[1]
    if name == BACKGROUND and not background:
        return
    source = images.extractfile(member)
    assert source is not None  # it is a plain file
    (target / name).mkdir(parents=True, exist_ok=True)
    with source, (target / name / path.parts[2]).open("wb") as file:
        shutil.copyfileobj(source, file)
