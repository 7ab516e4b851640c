"""The cache folder of a packed dataset: written whole or not at all, and believed only after checks.

``meta.json`` has a checksum of itself and of the arrays. All of them are compared whenever an entry is opened, but for
pixels of more than :data:`LARGE` bytes, which may take minutes: these are believed while their file has the size, the
times and the inode that it had when they were compared last, which ``checked.json`` says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from csham.data.dataset import PackedDataset, stored_side
from csham.data.decode import BadFile
from csham.errors import UserError
from csham.files import parse_json, read_plain, sha256_of, write_atomically

__all__ = [
    "Damaged",
    "check_space",
    "entry_path",
    "locked",
    "open_entry",
    "write_meta",
    "writing_errors",
]

FORMAT_VERSION = 1
ARRAYS = ("images", "labels", "parts", "sums")
LARGE = 2 * 2**30  # two seconds on a processor with instructions for SHA-256


class Damaged(Exception):  # noqa: N818 - a finding, not an error
    """A cache entry that cannot be used; the message says why, to follow "because"."""


def entry_path(root: Path, name: str, source: str, image_size: int) -> Path:
    """Return the path of a source's cache: one per source and size, so a stale entry is found and replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:40].strip("._-") or "images"
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return root / "packed" / f"{plain}-{image_size}px-{digest}"


def open_entry(path: Path, fingerprint: str, *, thorough: bool = False) -> PackedDataset | None:
    """Open a cache entry after checking its version, its source's fingerprint and the checksums.

    Args:
        path: The entry's folder.
        fingerprint: Fingerprint of the source now.
        thorough: True to compare all pixels again, also of a large entry that seems untouched.

    Returns:
        The dataset, or None where there is no entry.

    Raises:
        Damaged: There is one, but it cannot be used.
        UserError: It may not be read.
    """
    try:
        if not path.is_dir():
            return None
        meta = _read_meta(path)
        if meta["version"] != FORMAT_VERSION:
            raise Damaged("another version of csham made it")
        if meta["fingerprint"] != fingerprint:
            raise Damaged("its source, or the way it is read, has changed since")
        _check_sums(path, meta["sha256"], thorough=thorough)
        return _dataset(path, meta)
    except PermissionError as err:
        raise UserError(f"cannot read {err.filename}: {err.strerror}. {_ELSEWHERE}") from err
    except Damaged:
        raise
    except Exception as err:  # whatever a garbled file makes the readers raise
        raise Damaged(f"it is damaged ({type(err).__name__} while reading it)") from err


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json`` for the arrays in ``folder``, with their checksums."""
    sums = {name: sha256_of(folder / f"{name}.npy") for name in ARRAYS}
    body = json.dumps({"version": FORMAT_VERSION, **meta, "sha256": sums})
    whole = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
    (folder / "meta.json").write_text(json.dumps(whole), encoding="utf-8")


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a cache entry; calls ``on_wait`` before waiting for a process that holds it.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with writing_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about writing below ``folder`` into a :class:`UserError`."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {folder} is full. Free some space. {_ELSEWHERE}") from err
        raise UserError(f"cannot write into {folder}: {err.strerror or err}. {_ELSEWHERE}") from err


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: An existing folder on the disk.
        needed: Bytes.

    Raises:
        UserError: Less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"packing needs {needed / 2**20:,.0f} MiB in {folder}, and {free / 2**20:,.0f} MiB are free. "
            f"Free some space or choose a smaller image size. {_ELSEWHERE}"
        )


_ELSEWHERE = "Another folder: CSHAM_CACHE=DIR in the environment (in Python cache_dir=)."


def _read_meta(path: Path) -> dict[str, Any]:
    whole = json.loads(read_plain(path / "meta.json"))
    body = whole["body"]
    if hashlib.sha256(body.encode()).hexdigest() != whole["sha256"]:
        raise Damaged("it is damaged: meta.json has a wrong checksum")
    meta: dict[str, Any] = json.loads(body)
    return meta


def _check_sums(path: Path, expected: dict[str, str], *, thorough: bool) -> None:
    pixels = path / "images.npy"
    before = _state(pixels)
    large = before[0] > LARGE
    names = [name for name in ARRAYS if thorough or not large or name != "images" or before != _checked_state(path)]
    files = [path / f"{name}.npy" for name in names]
    with ThreadPoolExecutor(len(files)) as pool:  # hashing lets go of the interpreter's lock
        for name, file, digest in zip(names, files, pool.map(sha256_of, files), strict=True):
            if digest != expected[name]:
                raise Damaged(f"it is damaged: {file.name} has a wrong checksum")
    if large and "images" in names:
        with contextlib.suppress(OSError):  # a cache that others own: then it is compared each time
            write_atomically(path / "checked.json", lambda file: file.write(json.dumps(before).encode()))


def _state(file: Path) -> list[int]:
    """Numbers of which one changes when somebody writes to the file."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _checked_state(path: Path) -> Any:
    try:
        return parse_json(read_plain(path / "checked.json"))
    except (OSError, ValueError):
        return None


def _dataset(path: Path, meta: dict[str, Any]) -> PackedDataset:
    """Build the dataset, checking what a right checksum does not promise: that the values fit each other."""
    images, labels, parts, sums = (
        np.load(path / f"{name}.npy", mmap_mode="r" if name == "images" else None, allow_pickle=False)
        for name in ARRAYS
    )
    classes = tuple(str(name) for name in meta["classes"])
    side, count = stored_side(int(meta["image_size"])), len(labels)
    fits = (
        (images.shape, images.dtype) == ((count, side, side, 3), np.uint8)
        and (labels.ndim, labels.dtype) == (1, np.int64)
        and (parts.shape, parts.dtype) == ((count,), np.uint8)
        and (sums.shape, sums.dtype) == ((count, 3, 2), np.int64)
        and (count == 0 or (labels.min() >= 0 and labels.max() < len(classes) and parts.max() <= 2))
    )
    if not fits:
        raise Damaged("it is damaged: its arrays do not fit each other")
    return PackedDataset(
        name=str(meta["name"]),
        source=str(meta["source"]),
        classes=classes,
        image_size=int(meta["image_size"]),
        images=images,
        labels=labels,
        parts=parts,
        sums=sums,
        path=path,
        bad_files=[BadFile(str(file), str(reason)) for file, reason in meta["bad_files"]],
        ignored_files=int(meta["ignored_files"]),
        notes=[str(note) for note in meta["notes"]],
        flip=bool(meta["flip"]),
        from_cache=True,
    )
