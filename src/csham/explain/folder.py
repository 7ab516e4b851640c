"""Folder of pictures: which images are drawn into it, and what their files are called. Importable without torch."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csham.errors import UserError
from csham.files import write_atomically
from csham.inference.image_files import ImageFiles
from csham.settings import check_choice

if TYPE_CHECKING:
    from csham.explain.explanation import Explanation

__all__ = ["FORMATS", "MADE_BY", "PictureFolder"]

FORMATS = ("png", "svg", "pdf")

MADE_BY = "csham explain"
"""What pictures say of who made them, so that no other file is replaced."""

_LONGEST_STEM = 180  # bytes; file systems take names of 255, and a temporary name is longer


class PictureFolder:
    """A folder that gets a picture for each of many images; those of an earlier call are replaced, nothing else is.

    Args:
        path: The folder, made with the first picture.
        format: One of :data:`FORMATS`.
        npz: Write every map as a file of numpy's, too.

    Raises:
        UserError: The format is unknown.
    """

    def __init__(self, path: Path, format: str = "png", *, npz: bool = False) -> None:
        check_choice("format", format, FORMATS)
        self.path = path
        self._format, self._npz = format, npz
        self._stems: set[str] = set()
        self._explained: set[Path] = set()

    def images(self, names: Sequence[str]) -> list[str]:
        """List images that were named, but for the pictures in this folder that lie below a folder among them."""
        files = ImageFiles(names)
        files.check()
        here = self.path.resolve()
        resolved = {path: Path(path).resolve() for path in files}
        paths = [path for path in resolved if path in names or not resolved[path].is_relative_to(here)]
        if names and not paths:
            raise UserError(
                f"there are no images but those in {self.path}, where the pictures go. Name another --output."
            )
        self._explained = {resolved[path] for path in paths}
        return paths

    def write(self, explanations: Sequence[Explanation]) -> tuple[Path, list[Path]]:
        """Draw one image's explanations, those of several networks below each other.

        Returns:
            The picture, and the files of its maps.
        """
        from csham.explain.picture import draw, picture_bytes  # noqa: PLC0415  imports torch

        self.path.mkdir(parents=True, exist_ok=True)
        picture, *arrays = self._files(explanations[0].name, len(explanations) if self._npz else 0)
        content = picture_bytes(draw(explanations), self._format)
        write_atomically(picture, lambda file: file.write(content))
        for path, explanation in zip(arrays, explanations, strict=False):
            explanation.save_npz(path)
        return picture, arrays

    def _files(self, name: str, arrays: int) -> list[Path]:
        """Name an image's picture and files of maps: as the image, with its folders where another's have that name."""
        numbers = [""] if arrays == 1 else [f".{number}" for number in range(1, arrays + 1)]
        for stem in _stems(name):
            files = [self.path / f"{stem}.{self._format}", *(self.path / f"{stem}{number}.npz" for number in numbers)]
            # Some file systems do not tell capital letters from small ones.
            if stem.casefold() not in self._stems and all(map(self._may_be_written, files)):
                self._stems.add(stem.casefold())
                return files
        raise AssertionError("there is always another number")

    def _may_be_written(self, file: Path) -> bool:
        return not file.exists() or (file.resolve() not in self._explained and _is_own(file))


def _stems(name: str) -> Iterator[str]:
    """List names for an image's files, the shortest first."""
    path = Path(name)
    folders = [part for part in path.parts[:-1] if part not in (path.anchor, "..")]
    stems = ["-".join([*folders[len(folders) - depth :], path.stem]) for depth in range(len(folders) + 1)]
    for stem in itertools.chain(stems, (f"{stems[-1]}-{number}" for number in itertools.count(2))):
        whole = os.fsencode(stem)[-_LONGEST_STEM:].decode("utf-8", "ignore")  # no half of a character
        yield os.fsdecode(whole.encode())


def _is_own(file: Path) -> bool:
    """Return True if a file is a picture, or maps, of an earlier call."""
    try:
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return {"pixels.npy", "gradcam_layer.npy"} <= set(archive.namelist())
        return MADE_BY.encode() in file.read_bytes()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
