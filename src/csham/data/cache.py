"""The cache folder of a packed dataset: written whole or not at all, and believed only after checks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from csham.data.dataset import PackedDataset, stored_side
from csham.data.decode import BadFile
from csham.errors import UserError

__all__ = [
    "Damaged",
    "check_space",
    "entry_path",
    "locked",
    "open_entry",
    "replacing",
    "write_meta",
    "writing_errors",
]

FORMAT_VERSION = 1
ARRAYS = ("images", "labels", "parts", "sums")


class Damaged(Exception):  # noqa: N818 - a finding, not an error
    """A cache entry that cannot be used; the message says why, to follow "because"."""


def entry_path(root: Path, name: str, source: str, image_size: int) -> Path:
    """Return the path of a source's cache: one per source and size, so a stale entry is found and replaced."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:40].strip("._-") or "images"
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return root / "packed" / f"{plain}-{image_size}px-{digest}"


def open_entry(path: Path, fingerprint: str) -> PackedDataset | None:
    """Open a cache entry after checking its version, its source's fingerprint and every checksum.

    Args:
        path: The entry's folder.
        fingerprint: Fingerprint of the source now.

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
            raise Damaged("its source has changed since")
        _check_sums(path, meta["sha256"])
        return _dataset(path, meta)
    except PermissionError as err:
        raise UserError(f"cannot read {err.filename}: {err.strerror}. {_ELSEWHERE}") from err
    except Damaged:
        raise
    except Exception as err:  # whatever a garbled file makes the readers raise
        raise Damaged(f"it is damaged ({type(err).__name__} while reading it)") from err


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json`` for the arrays in ``folder``, with their checksums, and sync all to the disk."""
    sums = {name: _sha256(folder / f"{name}.npy") for name in ARRAYS}
    body = json.dumps({"version": FORMAT_VERSION, **meta, "sha256": sums})
    whole = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
    (folder / "meta.json").write_text(json.dumps(whole), encoding="utf-8")
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a cache entry; calls ``on_wait`` before waiting for a process that holds it.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with writing_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_lock_path(path))
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
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary folder that replaces the entry at the end, or vanishes if anything goes wrong.

    The entry's lock must be held: then every temporary folder of its name was left by a process that died.
    """
    _remove_leftovers(path)
    token = uuid.uuid4().hex[:8]
    fresh, old = (path.with_name(f".{path.name}.tmp-{kind}-{token}") for kind in ("new", "old"))
    try:
        fresh.mkdir()
        yield fresh
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        _sync(path.parent)
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)


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
    whole = json.loads((path / "meta.json").read_bytes())
    body = whole["body"]
    if hashlib.sha256(body.encode()).hexdigest() != whole["sha256"]:
        raise Damaged("it is damaged: meta.json has a wrong checksum")
    meta: dict[str, Any] = json.loads(body)
    return meta


def _check_sums(path: Path, expected: dict[str, str]) -> None:
    files = [path / f"{name}.npy" for name in ARRAYS]
    with ThreadPoolExecutor(len(files)) as pool:  # hashing lets go of the interpreter's lock
        for name, file, found in zip(ARRAYS, files, pool.map(_sha256, files), strict=True):
            if found != expected[name]:
                raise Damaged(f"it is damaged: {file.name} has a wrong checksum")


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


def _remove_leftovers(path: Path) -> None:
    """Delete temporary folders of dead processes: those whose entry's lock is free, or is ours."""
    for leftover in path.parent.glob(".*.tmp-*"):
        entry = leftover.with_name(leftover.name[1:].rpartition(".tmp-")[0])
        if entry == path:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        with contextlib.suppress(Timeout), FileLock(_lock_path(entry), timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)


def _lock_path(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.lock")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
