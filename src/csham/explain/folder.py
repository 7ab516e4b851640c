"""Folder of pictures: which images are drawn into it, and what their files are called. Importable without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from csham.errors import UserError
from csham.files import write_atomically
from csham.inference.image_files import ImageFiles
from csham.settings import check_choice

if TYPE_CHECKING:
    from csham.explain.explanation import Explanation

__all__ = ["FORMATS", "PictureFolder"]

FORMATS = ("png", "svg", "pdf")

_LONGEST_STEM = 180  # bytes; file systems take names of 255, and a temporary name is longer


class PictureFolder:
    """A folder that gets a picture for each of many images.

    Args:
        path: The folder, made with the first picture.
        format: One of :data:`FORMATS`.
        npz: Write every map as a file of numpy's, too.

    Raises:
        UserError: The format is unknown, or the path is not a folder.
    """

    def __init__(self, path: Path, format: str = "png", *, npz: bool = False) -> None:
        check_choice("format", format, FORMATS)
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {path} is not a folder. Name another.")
        self.path = path
        self._format, self._npz = format, npz
        self._stems: set[str] = set()

    def images(self, names: Sequence[str]) -> list[str]:
        """List images that were named, but for the pictures in this folder that lie below a folder among them."""
        files = ImageFiles(names)
        files.check()
        here = self.path.resolve()
        paths = [path for path in files if path in names or not Path(path).resolve().is_relative_to(here)]
        if names and not paths:
            raise UserError(
                f"there are no images but those in {self.path}, where the pictures go. Name another --output."
            )
        return paths

    def write(self, explanations: Sequence[Explanation]) -> tuple[Path, list[Path]]:
        """Draw one image's explanations, those of several networks below each other.

        Returns:
            The picture, and the files of its maps.
        """
        from csham.explain.picture import draw, picture_bytes  # noqa: PLC0415  imports torch

        self.path.mkdir(parents=True, exist_ok=True)
        stem = self._stem(explanations[0].name)
        picture = self.path / f"{stem}.{self._format}"
        content = picture_bytes(draw(explanations), self._format)
        write_atomically(picture, lambda file: file.write(content))
        arrays = []
        for number, explanation in enumerate(explanations if self._npz else (), 1):
            arrays.append(self.path / (f"{stem}.npz" if len(explanations) == 1 else f"{stem}.{number}.npz"))
            explanation.save_npz(arrays[-1])
        return picture, arrays

    def _stem(self, name: str) -> str:
        """Return a name for an image's files that no other has: its own, with its folders' where that is taken."""
        path = Path(name)
        folders = [part for part in path.parts[:-1] if part not in (path.anchor, "..")]
        stems = ["-".join([*folders[len(folders) - depth :], path.stem]) for depth in range(len(folders) + 1)]
        stems += [f"{stems[-1]}-{number}" for number in range(2, len(self._stems) + 3)]
        short = (stem.encode("utf-8", "surrogateescape")[-_LONGEST_STEM:].decode("utf-8", "ignore") for stem in stems)
        # Some file systems do not tell capital letters from small ones.
        stem = next(stem for stem in short if stem.casefold() not in self._stems)
        self._stems.add(stem.casefold())
        return stem
