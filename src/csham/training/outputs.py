"""Places of results, refused before the long work where writing there would change what a command was given.

What a command was given is to be the same afterwards: its files, the runs and studies that it read, and the images that
a next training reads, of which every folder among class folders would be a class. Nothing here imports PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from csham.errors import UserError
from csham.files import SUMS, read_sums
from csham.training.config import read_settings

__all__ = ["check_file", "check_folder", "check_output"]

# Of a study, which has no sums, and of a run, which may be of before there were any, or not have them all yet.
_FILES = {SUMS, "study.yaml", "records.jsonl", "repeats.jsonl", "costs.json", "config.yaml", "environment.json"}
_FILES |= {"metrics.csv", "confusion.csv", "summary.json", "model.safetensors"}


def check_output(option: str, file: Path | None, *, runs: Sequence[Path] = (), text: bool = True) -> None:
    """Refuse a file that could not be written, in a folder that exists, or that may not be replaced.

    Args:
        option: Whatever names the file, for the messages.
        file: The file, or None.
        runs: Runs and studies that were given.
        text: Text is to be written, which replaces nothing else.

    Raises:
        UserError: Says why, and what to do.
    """
    if file is None:
        return
    if file.exists() and not file.is_file():
        raise UserError(f"{option} {file} is {'a folder' if file.is_dir() else 'not a file'}. Name a file.")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{option} {file}: there is no folder {file.parent}. Make it first.")
    if not os.access(file.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {file}: {file.parent} is not writable. Name a file elsewhere.")
    check_file(option, file, runs=runs)
    if text and file.exists() and _is_binary(file):
        raise UserError(f"{option} {file} exists and holds no text, as an image or weights. Name another file.")


def check_file(
    option: str, file: Path, *, runs: Sequence[Path] = (), data: str | None = None, images: Sequence[str] = ()
) -> None:
    """Refuse a file that was given, or is part of a run or a study, or whose new folder would be a class of the data.

    Args:
        option: Whatever names the file, for the messages.
        file: The file, which may exist.
        runs: Runs and studies that were given.
        data: Data set that was given.
        images: Images that were given.

    Raises:
        UserError: Says which, and what to do.
    """
    from csham.data.sources.columns import path_and_columns  # noqa: PLC0415 - Pillow, which reports need not

    given = [*runs, *([] if data is None else [path_and_columns(data)[0]])]
    if any(one is not None and file.exists() and one.exists() and one.samefile(file) for one in given):
        raise UserError(f"{option} {file} is what this command was given to read. Name another file.")
    if (home := _home(file)) is not None:
        raise UserError(f"{option} {file} is a file of {home}, which cannot be read without it. Name another file.")
    if not file.parent.exists():
        _check_apart(option, file.parent, runs, data, images)


def check_folder(
    option: str, folder: Path | None, *, runs: Sequence[Path] = (), data: str | None = None, images: Sequence[str] = ()
) -> None:
    """Refuse a folder that could not be written into, is a run's or a study's own, or would be a class of the data.

    Args:
        option: Whatever names the folder, for the messages.
        folder: The folder, or None.
        runs: Runs and studies that were given.
        data: Data set that was given.
        images: Images that were given.

    Raises:
        UserError: Says why, and what to do.
    """
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder. Name another.")
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder}: {place} is not a folder that can be written into. Name another.")
    if _is_own(folder):
        raise UserError(
            f"{option} {folder} is the folder of a run, a study or a shared network, whose files are not to be "
            f"replaced. Name another, such as {folder / 'results'}."
        )
    _check_apart(option, folder, runs, data, images)


def _check_apart(option: str, place: Path, runs: Sequence[Path], data: str | None, images: Sequence[str]) -> None:
    from csham.data.sources import check_apart  # noqa: PLC0415 - Pillow, which reports need not
    from csham.data.sources.folder import class_folders  # noqa: PLC0415

    place = place.resolve()
    what_to_do = f"Name another place{f' with {option} DIR' if option.startswith('--') else ''}."
    known = [data, *map(_data_of, runs), *map(str, class_folders(images, place))]
    for one in dict.fromkeys(filter(None, known)):
        check_apart(one, place, what_to_do)


def _data_of(run: Path) -> str | None:
    """Return the images that a run or a study names, if it can be read: whoever needs it says why it cannot."""
    if not run.exists():
        return None  # a name of the Hub or the zoo
    home = run if run.is_dir() else run.parent
    with suppress(UserError, OSError):
        for file in filter(Path.is_file, (home / "config.yaml", home / "study.yaml")):
            data = read_settings(file).get("data")
            data = data.get("source") if isinstance(data, dict) else data
            return data if isinstance(data, str) else None
    return None


def _home(file: Path) -> Path | None:
    """Return the run, study or shared folder that a file is part of."""
    file = file.absolute()
    if file.name in _FILES and _is_own(file.parent):
        return file.parent
    for home in (file.parent, file.parent.parent):
        with suppress(ValueError, OSError):  # damaged: whoever reads them says it
            if file.relative_to(home).as_posix() in (read_sums(home) or ()):
                return home
    return None


def _is_own(folder: Path) -> bool:
    """Return True for the folder of a run, a study or a shared network; a run of an earlier version has no sums."""
    if (folder / SUMS).exists() or (folder / "study.yaml").is_file():
        return True
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def _is_binary(file: Path) -> bool:
    with file.open("rb") as opened:
        return b"\0" in opened.read(2**16)
