"""An image folder in a zip or tar archive, read where it lies: nothing of it is ever written to the disk as a file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import sys
import tarfile
import zipfile
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from csham.data.decode import Content, Encoded, Unreadable
from csham.data.sources.base import Chunk, Images, Listing, Source, Workplace, chunks_of, default_image_size, sample_of
from csham.data.sources.folder import existing
from csham.data.sources.layout import File, is_image, is_silent, list_images, note_background, stamp_of
from csham.data.split import PARTS
from csham.errors import UserError

__all__ = ["ArchiveSource"]

_ENDINGS = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MOST_BYTES = 256 * 2**20  # of one image file: an uncompressed photograph of 80 megapixels
_MOST_IN_ALL = 2**30  # unpacked, unless the archive itself is as large as
_MOST_RATIO = 100  # allows: photographs hardly get smaller
_LONGEST_PATH = 4096  # characters, as on Linux


class ArchiveSource(Source):
    """A zip or tar of what an image folder holds, with or without one folder around it."""

    def __init__(self, path: Path) -> None:
        self._archive = _Zip(path) if path.name.lower().endswith(".zip") else _Tar(path)
        with self._archive.errors():
            tree = _MemberTree(path, self._archive.members())
            self.listing: Listing = list_images(tree)
            stamp = stamp_of(path.stat())
        note_background(self.listing)
        self.name = path.name
        self.location = str(path)
        self.fingerprint = f"{stamp} {self.listing.fingerprint}"  # which is of the names
        self._within = tree.within

    @classmethod
    def find(cls, data: str | Path) -> Source | None:
        """Take a file whose name ends as archives' do."""
        path = existing(data)
        return cls(path) if path is not None and path.is_file() and path.name.lower().endswith(_ENDINGS) else None

    def default_size(self) -> int:
        """Largest usual size that the images fill."""
        read = self._read({self._within + file: row for row, file in enumerate(sample_of(self.listing.files))})
        return default_image_size([content for _, content in sorted(read) if isinstance(content, Encoded)])

    def load(self, work: Workplace) -> Images:
        """Read the images in the order in which they lie."""

        def chunks(most: int) -> Iterator[Chunk]:
            rows = {self._within + file: row for row, file in enumerate(self.listing.files)}
            return chunks_of(self._read(rows), most)

        return Images(self.listing, chunks)

    def _read(self, rows: dict[str, int]) -> Iterator[tuple[int, Content]]:
        with self._archive.errors():
            for path, content in self._archive.read(rows):
                yield rows[path], content


class _Member(NamedTuple):
    """A file or folder of an archive: its path as plain folders and name, and its size unpacked."""

    path: str
    size: int
    is_folder: bool


class _Archive(ABC):
    """An archive's members, each looked at before it is believed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def members(self) -> list[_Member]:
        """List all members."""

    @abstractmethod
    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        """Read members of these paths, in the order in which they lie."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Say what to do about an archive that cannot be read."""
        try:
            yield
        except UserError:
            raise
        except PermissionError as err:
            raise UserError(f"cannot read {self.path}: {err.strerror}. Check its permissions.") from err
        except Exception as err:  # what garbled headers make the readers raise is anything from struct.error on
            words = " ".join(str(err).split())[:120] or type(err).__name__
            raise UserError(
                f"{self.path} is a file that cannot be read as an archive ({words}). Copy or download it again. "
                "Unpack it, as far as that goes, to give the folder instead."
            ) from err

    def checked(self, name: str, size: int, *, is_folder: bool, fault: str | None) -> _Member:
        """Give a member, unless it is none that a folder of images needs."""
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        if fault is None and (name.startswith("/") or re.match("[A-Za-z]:", name)):
            fault = "is an absolute path"
        elif fault is None and (".." in path.split("/") or "\\" in name):
            fault = "may lie outside its folder"
        elif fault is None and len(name) > _LONGEST_PATH:
            fault = "is longer than a path may be"
        elif fault is None and size < 0:
            fault = "has a size below zero"
        elif fault is None and size > _MOST_BYTES and is_image(name):
            fault = f"takes {size / 2**20:,.0f} MiB unpacked, where an image may take {_MOST_BYTES // 2**20:,}"
        if fault is not None:
            raise self.refusal(name, fault)
        return _Member(path, size, is_folder)

    def refusal(self, name: str, fault: str) -> UserError:
        """Build the error for a member that is refused, and with it the archive."""
        shown = name if len(name) <= 200 else name[:200] + "..."
        return UserError(
            f"{self.path} holds {shown!r}, which {fault}: refused. If you trust the archive, unpack it and give the "
            "folder, or pack it again without this member."
        )

    def most_in_all(self) -> int:
        """Bytes that the archive may hold unpacked."""
        return max(_MOST_IN_ALL, _MOST_RATIO * self.path.stat().st_size)

    def too_large(self) -> UserError:
        """Build the error for an archive that holds more than that."""
        return UserError(
            f"{self.path} holds more than {self.most_in_all() / 2**30:,.1f} GiB unpacked, {_MOST_RATIO} times its size "
            "or more (a decompression bomb?): refused. If you trust the archive, unpack it and give the folder."
        )


class _Zip(_Archive):
    def members(self) -> list[_Member]:
        with zipfile.ZipFile(self.path) as archive:
            members = [
                self.checked(_name(info), info.file_size, is_folder=info.is_dir(), fault=_fault_of_zipped(info))
                for info in archive.infolist()
            ]
        if sum(member.size for member in members if is_image(member.path)) > self.most_in_all():
            raise self.too_large()
        return members

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        with zipfile.ZipFile(self.path) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                path = self.checked(_name(info), info.file_size, is_folder=info.is_dir(), fault=None).path
                if path in paths and not info.is_dir():
                    yield path, _unzipped(archive, info)


def _name(info: zipfile.ZipInfo) -> str:
    """Name of a member: Linux's zip writes UTF-8 without the mark, which zipfile takes for IBM's code page 437."""
    if info.flag_bits & 0x800:  # the mark
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _fault_of_zipped(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "is encrypted"
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    return _LINK if kind == stat.S_IFLNK else _NO_FILE if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else None


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Content:
    try:
        with archive.open(info) as file:  # which gives no more than the size that was checked
            return Encoded(_name(info), file.read())
    except Exception as err:  # one member's wrong checksum or garbled header is that of one bad file
        words = " ".join(str(err).split())[:120] or type(err).__name__
        return Unreadable(_name(info), f"cannot be unpacked ({words})")


class _Tar(_Archive):
    def members(self) -> list[_Member]:
        return [self._checked(member) for member, _ in self._walk()]

    def read(self, paths: Collection[str]) -> Iterator[tuple[str, Content]]:
        for member, archive in self._walk():
            path = self._checked(member).path
            if path in paths and member.isfile():
                file = archive.extractfile(member)
                assert file is not None  # it is a plain file
                yield path, Encoded(member.name, file.read())

    def _checked(self, member: tarfile.TarInfo) -> _Member:
        return self.checked(member.name, member.size, is_folder=member.isdir(), fault=_fault_of_tarred(member))

    def _walk(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        """Give the members one after another; a compressed archive is read from end to end for it."""
        with self.path.open("rb") as raw, _decompressed(self, raw) as file:
            bounded = _Bounded(self, file)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
                while (member := archive.next()) is not None:
                    archive.members = []  # which would grow with the archive
                    bounded.member = member.name
                    yield member, archive
            if bounded.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("it is damaged, or cut short")


def _fault_of_tarred(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return _LINK
    return None if (member.isfile() and not member.issparse()) or member.isdir() else _NO_FILE


_LINK = "is a link"
_NO_FILE = "is no plain file"


def _decompressed(archive: _Tar, raw: IO[bytes]) -> Any:
    """Open what a tar file is compressed with, told by its first bytes."""
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if magic == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(raw)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstandard(archive, raw)
    return raw


def _zstandard(archive: _Tar, raw: IO[bytes]) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415

        return zstd.ZstdFile(raw)
    raise UserError(
        f"{archive.path} is compressed with Zstandard, which Python reads from 3.14 on, and this is "
        f"{sys.version_info.major}.{sys.version_info.minor}. Unpack it and give the folder, or compress it with gzip."
    )


class _Bounded:
    """A file that tells in time when more is asked of it than an archive of images holds."""

    def __init__(self, archive: _Archive, file: Any) -> None:
        self._archive, self._file, self._most = archive, file, archive.most_in_all()
        self.last = b""
        self.member = ""

    def read(self, size: int) -> bytes:
        """Read bytes; a header may want more of them at once than an image takes."""
        if not 0 <= size <= _MOST_BYTES:
            raise self._archive.refusal(self.member, "asks for more memory than an image takes, or stands before one")
        self.seek(self.tell() + size, only_check=True)
        self.last = self._file.read(size)
        return self.last

    def seek(self, position: int, *, only_check: bool = False) -> int:
        """Go to a position, forward mostly; of what is compressed all on the way is unpacked."""
        if position > self._most:
            raise self._archive.too_large()
        return position if only_check else self._file.seek(position)

    def tell(self) -> int:
        """Give the position."""
        return self._file.tell()


class _MemberTree:
    """Folders and files of an archive, as a folder on the disk has them."""

    def __init__(self, archive: Path, members: list[_Member]) -> None:
        self._folders: dict[str, set[str]] = {"": set()}  # of each the folders in it
        self._files: dict[str, list[str]] = {}
        kept = [member for member in members if member.path and not any(map(is_silent, member.path.split("/")))]
        for member in kept:
            above, _, name = member.path.rpartition("/")
            self._add_folder(member.path if member.is_folder else above)
            if not member.is_folder:
                self._files.setdefault(above, []).append(name)
        self._sizes = {member.path: member.size for member in kept if not member.is_folder}
        self._sorted = sorted(self._sizes)
        if len(self._sorted) < sum(map(len, self._files.values())):
            raise _duplicate(archive, [member.path for member in kept if not member.is_folder])
        self.within = self._only_folder()
        self.root = archive / self.within
        self._archive = archive

    def subfolders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted."""
        return sorted(self._folders.get(self._path(folder), ()))

    def files(self, folder: Path) -> list[str]:
        """Names of the files directly in a folder."""
        return self._files.get(self._path(folder), [])

    def images(self, folder: Path) -> tuple[list[File], int]:
        """Images anywhere below a folder, sorted by path, and how many other files there are."""
        above = self._path(folder) + "/"
        first = bisect_left(self._sorted, above)
        paths = self._sorted[first : bisect_left(self._sorted, above[:-1] + "0", first)]  # "0" comes after "/"
        images = [File(path[len(self.within) :], str(self._sizes[path])) for path in paths if is_image(path)]
        return images, len(paths) - len(images)

    def _path(self, folder: Path) -> str:
        below = folder.relative_to(self._archive).as_posix()
        return "" if below == "." else below

    def _add_folder(self, path: str) -> None:
        missing = []
        while path not in self._folders:
            missing.append(path)
            path = path.rpartition("/")[0]
        for folder in reversed(missing):
            above, _, name = folder.rpartition("/")
            self._folders[above].add(name)
            self._folders[folder] = set()

    def _only_folder(self) -> str:
        """Path of the one folder that all lies in, with its slash, or nothing where there is none such."""
        names = list(self._folders[""])
        if len(names) != 1 or names[0].lower() in PARTS or any(map(is_image, self._files.get("", []))):
            return ""
        return f"{names[0]}/" if self._folders[names[0]] else ""


def _duplicate(archive: Path, paths: list[str]) -> UserError:
    seen: set[str] = set()
    twice = next(path for path in paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
    return UserError(
        f"{archive} holds {twice!r} twice: refused, since programs differ in which of the two they take. Pack it "
        "again, or unpack it and give the folder."
    )
