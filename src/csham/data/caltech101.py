"""Caltech-101: from its published archive to an image folder."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from csham.data.downloads import Archive, fetch
from csham.errors import UserError

__all__ = ["BACKGROUND", "FOLDERS", "unpack_caltech101"]

# Whether the background class, 467 assorted pictures, is kept as a 102nd: torchvision leaves it out as no real class,
# TensorFlow Datasets and the benchmarks made from it keep it.
FOLDERS = {"caltech101": False, "caltech101-background": True}
BACKGROUND = "BACKGROUND_Google"

# As torchvision has them since 0.24; the places of earlier versions are gone.
URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
MD5 = "3138e1922a9193bfa496528edbbc45d0"
_INNER = "101_ObjectCategories"


def unpack_caltech101(
    downloads: Path, target: Path, *, background: bool, say: Callable[[str], None] = lambda what: None
) -> Path:
    """Unpack the images of Caltech-101, downloading its archive first unless it is there.

    Args:
        downloads: Folder in which downloads are kept.
        target: Folder to make; in the end it holds ``<class>/*.jpg``.
        background: Whether to keep the background class.
        say: Told what is going on.

    Returns:
        ``target``.

    Raises:
        UserError: The archive could not be downloaded or read, or holds what it should not.

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
    return target


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
