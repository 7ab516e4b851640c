"""Archives that are downloaded once and kept: found by checksum, and what to do where that fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from csham.errors import UserError
from csham.files import write_atomically

__all__ = ["Archive", "downloading", "fetch"]


@dataclass(frozen=True)
class Archive:
    """A file that a dataset comes in.

    Attributes:
        name: The dataset's.
        url: Address at which it is published.
        md5: Checksum of the published file.
        path: Path at which it is kept; a copy put there by hand is taken.
        megabytes: Its size.
    """

    name: str
    url: str
    md5: str
    path: Path
    megabytes: int


def fetch(archive: Archive, say: Callable[[str], None]) -> None:
    """Download an archive, unless it is there already and whole.

    Raises:
        UserError: It could not be downloaded, or what came has a wrong checksum.
    """
    if archive.path.is_file() and _md5(archive.path) == archive.md5:
        say(f"reading {archive.name}")
        return
    say(f"downloading {archive.name} ({archive.megabytes} MB)")
    archive.path.parent.mkdir(parents=True, exist_ok=True)

    def download(file: IO[bytes]) -> None:
        with downloading(archive):
            from torchvision.datasets.utils import download_url  # noqa: PLC0415 - imports torch

            path = Path(file.name)
            download_url(archive.url, path.parent, path.name, archive.md5)

    write_atomically(archive.path, download)


@contextlib.contextmanager
def downloading(archive: Archive) -> Iterator[None]:
    """Silence torchvision while it downloads or reads an archive, and say what to do where it fails.

    Raises:
        UserError: It fails.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as err:  # URL, TLS, HTTP, tar and checksum errors all have types of their own
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the cache says what to do about a full disk
        raise UserError(_failed(archive, err)) from err


def _failed(archive: Archive, err: Exception) -> str:
    by_hand = f"Put a copy of {archive.url} (md5 {archive.md5}) at {archive.path}, or give an image folder instead."
    if archive.path.exists():
        return (
            f"{archive.path} is damaged: its checksum is not that of {archive.name} (md5 {archive.md5}), and a fresh "
            f"copy could not be downloaded. {by_hand}"
        )
    why = "what came has a wrong checksum." if isinstance(err, RuntimeError) else "no network?"
    return f"{archive.name} could not be downloaded: {why} {by_hand}"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
