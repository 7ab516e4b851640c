"""Files and folders that a reader or a crash meets whole, old content or new, and that tell when they were changed.

What is written is synced before it gets its name, and its folder after it: what a later step relies on is on the disk.
Until then it lies beside its place, as ``.NAME.csham-new-HOST-PID-TOKEN.tmp``, or ``-old-`` for a folder that is being
replaced, with a lock on it that the system frees when its process ends. The next call that writes beside it removes
what no process holds.

Three forms of sums say whether something is as it was written; what has none is from before there were any:

- ``csham.sha256`` in a folder, which ``sha256sum -c csham.sha256`` reads too: a line ``<SHA-256>  <path>`` for each
  file, and at its end ``# <SHA-256 of the lines above>``. A file that is being replaced has two lines, of its old and
  its new content, each of which is right, until :func:`settle_sums` or the next replacement.
- ``"sum"`` in an object of JSON, such as a line of a store: the first 16 digits of the SHA-256 of the rest, written by
  ``json.dumps(rest, sort_keys=True, separators=(",", ":"))``.
- ``csham-sha256:`` and 64 digits anywhere in a file that goes about alone, such as in its metadata: the SHA-256 of the
  file with zeros for these digits, whatever its format.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import mmap
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: the number of the process has to do
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "SEAL",
    "SUMS",
    "cache_root",
    "csv_text",
    "has_right_seal",
    "has_right_sum",
    "make_folders",
    "new_file",
    "new_folder",
    "parse_json",
    "read_plain",
    "read_sums",
    "remove_file",
    "remove_leftovers",
    "sealed",
    "settle_sums",
    "sha256_of",
    "sum_files",
    "summed",
    "write_atomically",
    "write_summed",
]

SUMS = "csham.sha256"
"""Name of the file in a folder that has the checksums of the others."""

_SEAL = b"csham-sha256:"
SEAL = f"{_SEAL.decode()}{64 * '0'}"
"""Text in a file's content of which :func:`sealed` makes its checksum."""

_DAYS = 7 * 24 * 3600
_LARGEST_SUMS = 2**20

# The sums of what this process wrote last, by path: they need not be computed again when it is replaced.
_written_sums: dict[Path, str] = {}


def cache_root(cache_dir: Path | None = None) -> Path:
    """The folder for everything cached: the one given, or ``$CSHAM_CACHE``, or the user's cache folder.

    Raises:
        OSError: It is in a home folder, and there is none, as in a container with a user of its own.
    """
    if chosen := cache_dir or os.environ.get("CSHAM_CACHE"):
        return _absolute(chosen)
    return _absolute(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "csham"


def _absolute(folder: Path | str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as err:
        what = "there is no such home folder. Keep the cache in another: CSHAM_CACHE=DIR in the environment"
        raise FileNotFoundError(errno.ENOENT, what, str(folder)) from err


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Replace ``path`` by what ``write`` writes, at once; it is on the disk afterwards.

    Args:
        path: The file; its folder exists.
        write: Writes the content to the open binary file it is given.

    Raises:
        OSError: With ``filename`` set, also where the disk is full; the old file is still there.
    """
    with _written(path, write) as temporary:
        temporary.replace(path)
        _sync_folder(path.parent)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, on the disk."""
    if not folder.is_dir():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


@contextmanager
def new_folder(place: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``place`` at the end, with all that is in it, or vanishes if that fails.

    Args:
        place: The folder to be made; an empty one in its place is replaced.
        replace: True to replace any folder there; the old one stays until the new one is whole, and a crash between the
            two renames leaves it to the next call, which puts it back.

    Raises:
        FileExistsError: Another process has made it meanwhile.
        OSError: With ``filename`` in ``place``.
    """
    place = place.resolve()
    with _beside(place) as temporary:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        _put(temporary, place, replace=replace)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a path of the same name in a temporary folder, for what writes to a path; the file there replaces ``path``.

    What else is in the folder vanishes, and all of it if the block fails.

    Args:
        path: The file to be made or replaced; its folder is made.

    Raises:
        OSError: With ``filename`` in the folder of ``path``.
    """
    with _beside(path) as temporary:
        draft = temporary / path.name
        yield draft
        _sync(draft)
        draft.replace(path)
        _sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there; it is gone from the disk afterwards."""
    path.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_leftovers(place: Path) -> None:
    """Remove what processes that are gone left beside ``place``, and put back an old folder that has no successor.

    On other machines the system may not tell who still writes, so what comes from there has to be a week old.
    """
    with suppress(OSError):
        for path in list(place.parent.iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            old = match is not None and match["kind"] == "old"
            if match and (not old or match["name"] == _short(place.name)):
                with suppress(OSError):
                    _remove_abandoned(path, match["host"], int(match["pid"]), place if old else None)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is no plain file.
    """
    with _plain(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_plain(path: Path) -> bytes:
    """Return the content of a file in a folder that anyone may have written.

    Raises:
        OSError: It cannot be read, or is no plain file.
    """
    return _plain(path).read_bytes()


def _plain(path: Path) -> Path:
    """Refuse pipes and devices, of which reading may never come to an end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return path


def write_summed(folder: Path, writes: Mapping[str, Callable[[IO[bytes]], Any]]) -> None:
    """Replace files of a folder as :func:`write_atomically` does, and their checksums; a crash leaves two that agree.

    Args:
        folder: The folder, which one process alone writes.
        writes: By the path of each file in it, with ``/``, in the order in which they get their names: writes the
            content to the open binary file it is given.

    Raises:
        OSError: As for :func:`write_atomically`; the old files are still there.
        ValueError: The folder's checksums are damaged.
    """
    sums = {name: tuple(digests) for name, digests in (read_sums(folder) or {}).items()}
    with ExitStack() as stack:
        temporary = {folder / name: stack.enter_context(_written(folder / name, writes[name])) for name in writes}
        digests = {path: sha256_of(new) for path, new in temporary.items()}
        for name, path in zip(writes, temporary, strict=True):
            before = sums.get(name) or ((sha256_of(path),) if path.is_file() else ())
            if before[-1:] == (_written_sums.get(path.absolute()),):  # no other process has written it since
                before = before[-1:]
            sums[name] = tuple(dict.fromkeys((*before, digests[path])))
        _write_sums(folder, sums)
        for path, new in temporary.items():
            new.replace(path)
            _sync_folder(path.parent)  # before the next one, which may rely on it
    _written_sums.update({path.absolute(): digest for path, digest in digests.items()})


def settle_sums(folder: Path) -> None:
    """Leave one checksum for each file of a folder, when no more of them will be replaced."""
    sums = read_sums(folder) or {}
    several = {name: sha256_of(folder / name) for name, digests in sums.items() if len(digests) > 1}
    if several:
        _write_sums(folder, {**sums, **{name: (digest,) for name, digest in several.items() if digest in sums[name]}})


def sum_files(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of the files of a folder as they are now.

    Args:
        folder: The folder.
        names: Paths of the files in it, with ``/``.
    """
    _write_sums(folder, {name: (sha256_of(folder / name),) for name in names})


def read_sums(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Return the checksums that each listed file of a folder may have; None where there is no list.

    Raises:
        ValueError: The list is damaged.
    """
    path = folder / SUMS
    if not path.is_file():
        if path.exists():
            raise ValueError("it is not a file")
        return None
    with path.open("rb") as file:
        content = file.read(_LARGEST_SUMS + 1)
    lines, end = content[:-67], content[-67:]
    if len(content) > _LARGEST_SUMS or end != _end(lines):
        raise ValueError("it is not whole")
    sums: dict[str, tuple[str, ...]] = {}
    for line in lines.decode().splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = (*sums.get(name, ()), digest)
    return sums


def summed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object of JSON with its ``"sum"`` added at the end, in place of one that it may have.

    Raises:
        ValueError: It holds what JSON does not have.
    """
    rest = {key: value for key, value in values.items() if key != "sum"}
    return {**rest, "sum": _sum_of(rest)}


def has_right_sum(values: Mapping[str, Any]) -> bool | None:
    """Tell whether an object that was read as JSON is as :func:`summed` made it; None where it has no ``"sum"``."""
    if "sum" not in values:
        return None
    try:
        return bool(values["sum"] == summed(values)["sum"])
    except (ValueError, RecursionError):
        return False


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a table as CSV: None as an empty cell, numbers with the six digits that count."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue()


def sealed(content: bytes) -> bytes:
    """Return the content of a file with its checksum in place of the :data:`SEAL` that stands in it once."""
    before, after = content.split(SEAL.encode())
    return b"".join([before, _SEAL, hashlib.sha256(content).hexdigest().encode(), after])


def has_right_seal(path: Path) -> bool | None:
    """Tell whether a file's content is as :func:`sealed` made it; None where it has no checksum in it."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.find(_SEAL)
            if place < 0:
                return None
            start, end = place + len(_SEAL), place + len(SEAL)
            digest = hashlib.sha256()
            with memoryview(content) as view, view[:start] as before, view[end:] as after:
                for part in (before, SEAL.encode()[len(_SEAL) :], after):
                    digest.update(part)
            return content[start:end] == digest.hexdigest().encode()


def parse_json(text: str | bytes) -> Any:
    """Read JSON that anyone may have written.

    Raises:
        ValueError: It is not UTF-8 or not JSON, names a key twice, holds NaN, infinity or a number that large, or is
            nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_not_json, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name[:60]!r} is there twice")
        values[name] = value
    return values


def _not_json(constant: str) -> float:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:30]} is too large")
    return number


def _sum_of(rest: Mapping[str, Any]) -> str:
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_sums(folder: Path, sums: Mapping[str, Iterable[str]]) -> None:
    lines = "".join(f"{digest}  {name}\n" for name in sorted(sums) for digest in sums[name]).encode()
    write_atomically(folder / SUMS, lambda file: file.write(lines + _end(lines)))


def _end(lines: bytes) -> bytes:
    return f"# {hashlib.sha256(lines).hexdigest()}\n".encode()


@contextmanager
def _written(path: Path, write: Callable[[IO[bytes]], Any]) -> Iterator[Path]:
    """Give a temporary file with the content, synced and held; it goes unless it is given another name."""
    remove_leftovers(path)
    temporary = None
    try:
        while True:
            temporary = _temporary(path)
            with temporary.open("xb") as file:
                if not _held(file.fileno(), temporary):
                    continue
                write(file)
                file.flush()
                os.fsync(file.fileno())
                yield temporary
                return
    except OSError as err:
        if err.filename in (None, str(temporary)):
            err.filename = str(path)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``place``, which goes unless it is given another name."""
    make_folders(place.parent)
    remove_leftovers(place)
    temporary, handle = _held_folder(place)
    try:
        yield temporary
    except OSError as err:
        if err.filename is None:  # writing knows no names
            err.filename = str(place)
        elif isinstance(err.filename, str):
            err.filename = err.filename.replace(str(temporary), str(place))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def _held_folder(place: Path) -> tuple[Path, int]:
    """Make a temporary folder, and return it with the handle that holds its lock."""
    while True:
        temporary = _temporary(place)
        temporary.mkdir()
        with suppress(FileNotFoundError):
            handle = os.open(temporary, os.O_RDONLY)
            if _held(handle, temporary):
                return temporary, handle
            os.close(handle)


def _put(temporary: Path, place: Path, *, replace: bool) -> None:
    while True:
        with _set_aside(place) if replace else nullcontext():
            try:
                temporary.rename(place)
            except OSError as err:
                if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                if not replace or err.errno == errno.ENOTDIR or place.is_file():  # else taken anew: set it aside again
                    raise FileExistsError(errno.EEXIST, "another process has made it meanwhile", str(place)) from err
            else:
                _sync_folder(place.parent)
                return


@contextmanager
def _set_aside(place: Path) -> Iterator[None]:
    """Rename a folder, and remove it once its name is taken; its lock is held, or others would put it back."""
    try:
        handle = os.open(place, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except (FileNotFoundError, NotADirectoryError):
        yield
        return
    try:
        _lock(handle, wait=True)
        old = _temporary(place, "old")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), place.stat()):  # or another process has replaced it meanwhile
                place.rename(old)
        try:
            yield
        finally:
            if old.exists():
                with suppress(OSError):
                    if not place.exists():
                        old.rename(place)
                if place.exists():
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(handle)


_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.csham-(?P<kind>new|old)-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL
)


def _temporary(place: Path, kind: str = "new") -> Path:
    token = uuid.uuid4().hex[:8]
    return place.with_name(f".{_short(place.name)}.csham-{kind}-{_host()}-{os.getpid()}-{token}.tmp")


def _short(name: str) -> str:
    """Return a name that leaves room for the rest: file systems have 255 bytes."""
    return name if len(os.fsencode(name)) < 128 else hashlib.sha256(os.fsencode(name)).hexdigest()


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", platform.node())[:60] or "unnamed"


def _held(handle: int, path: Path) -> bool:
    """Lock what was just made; False where another process removed it before that."""
    _lock(handle, wait=True)
    return path.exists()


def _lock(handle: int, *, wait: bool) -> bool | None:
    """Lock an open file or folder until it is closed; None where the system cannot."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a network file system
        return None
    return True


def _remove_abandoned(path: Path, host: str, number: int, home: Path | None) -> None:
    """Remove a temporary file or folder that no process holds, or give it back its name, if nothing has that."""
    aged = time.time() - path.stat().st_mtime > _DAYS
    if host != _host() and not aged:
        return
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        locked = _lock(handle, wait=False)
        if locked is False or (locked is None and not aged and _is_alive(number)):
            return
        if home is not None and not home.exists():
            path.rename(home)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(handle)


def _is_alive(number: int) -> bool:
    """Return True if a process of this machine has the number."""
    if os.name == "nt":  # where a signal ends a process, whichever it is
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    try:
        _sync(folder)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM):
            raise
