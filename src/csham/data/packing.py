"""Source to packed dataset: open the cache where it is whole and fresh, otherwise build it on all cores."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from csham.data import cache, caltech101
from csham.data.dataset import PackedDataset, stored_side
from csham.data.decode import BadFile, DecodedChunk, channel_sums, decode_chunk, fit_square
from csham.data.folder import Listing, default_image_size, scan
from csham.data.named import DATASETS, IMAGE_SIZES, load_named
from csham.errors import UserError, known_names
from csham.files import cache_root

__all__ = ["prepare"]

Progress = Callable[[int, int, str], None]

_ALONE_BELOW = 2000  # files: starting workers takes as long as decoding about so many
_CHUNK_BYTES = 32 * 2**20


def prepare(
    data: str | Path,
    *,
    image_size: int | None = None,
    cache_dir: Path | None = None,
    max_bad: int = 10,
    progress: Progress | None = None,
) -> PackedDataset:
    """Open a dataset, packing it first where no whole and fresh cache of it exists.

    Args:
        data: A name of ``DATASETS``, or the path of an image folder (a ``Path`` is always a folder).
        image_size: Side in pixels of what the network sees, 8 to 1024. By default that of ``IMAGE_SIZES`` for a
            named dataset, and for a folder the largest usual size (32, 64, 96, 128, 160, 224) that its images fill.
        cache_dir: Where caches and downloads are kept; default ``$CSHAM_CACHE``, ``$XDG_CACHE_HOME/csham`` or
            ``~/.cache/csham``.
        max_bad: How many unreadable files are skipped before it counts as an error.
        progress: Called with images done, images in all (0: not known) and what is being done.

    Raises:
        UserError: ``data`` is neither a name nor a folder, the folder cannot be trained on, too many files
            are unreadable, a download failed, or the cache cannot be written.
    """
    _check_size(image_size)
    root = cache_root(cache_dir)
    source = _source(data, image_size)
    path = cache.entry_path(root, source.name, source.source, source.image_size)
    dataset, _ = _try_open(path, source.fingerprint)
    if dataset is None:
        dataset = _build_alone(source, path, root, max_bad, progress or _silent)
    _check_bad(dataset.bad_files, max_bad)
    if source.listing is not None:
        bad = {file.path for file in dataset.bad_files}
        pairs = zip(source.listing.files, source.listing.paths(), strict=True)
        dataset.files = [file for file, path in pairs if path not in bad]
    return dataset


@dataclass
class _Source:
    """What is to be packed, before anything is decoded; ``listing`` is None for a named dataset."""

    name: str
    source: str
    fingerprint: str
    image_size: int
    listing: Listing | None = None


@dataclass
class _Packed:
    """What packing found out, beside the pixels that it wrote to ``images.npy``."""

    classes: tuple[str, ...]
    labels: np.ndarray
    parts: np.ndarray
    sums: np.ndarray
    bad_files: list[BadFile]
    ignored_files: int
    notes: list[str]
    flip: bool = True


def _check_size(image_size: int | None) -> None:
    if image_size is not None and not 8 <= image_size <= 1024:
        raise UserError(f"the image size must be 8 to 1024 pixels, got {image_size}.")


def _source(data: str | Path, image_size: int | None) -> _Source:
    if isinstance(data, str) and data in DATASETS:
        return _Source(data, data, f"{data} 1", image_size or IMAGE_SIZES[data])
    root = _existing_folder(data)
    listing = scan(root)
    if caltech101.BACKGROUND in listing.classes:
        listing.notes.append(
            f"{caltech101.BACKGROUND} is one of the classes; results on Caltech-101's 101 classes are without it"
        )
    size = image_size or default_image_size(listing.paths())
    return _Source(root.name or "images", str(root), listing.fingerprint, size, listing)


def _existing_folder(data: str | Path) -> Path:
    try:
        root = Path(data).expanduser().resolve()
        is_folder, is_file = root.is_dir(), root.is_file()
    except (OSError, RuntimeError, ValueError):  # a path that cannot exist, or a link to itself
        is_folder = is_file = False
    if is_file:
        raise UserError(f"{data} is a file; an image folder is needed. Unpack it first if it is an archive.")
    if not is_folder or not str(data):  # an empty string would be the current folder
        known = known_names("dataset", data, DATASETS)
        raise UserError(f"{str(data)!r} is neither a dataset's name nor a folder. {known}")
    return root


def _try_open(path: Path, fingerprint: str) -> tuple[PackedDataset | None, str | None]:
    """The cached dataset, or None with the reason why what is there cannot be used."""
    try:
        return cache.open_entry(path, fingerprint), None
    except cache.Damaged as why:
        return None, str(why)


def _build_alone(source: _Source, path: Path, root: Path, max_bad: int, progress: Progress) -> PackedDataset:
    """Build the cache entry, unless another process does so first."""
    with cache.locked(path, lambda: progress(0, 0, "waiting for another process that packs the same images")):
        dataset, reason = _try_open(path, source.fingerprint)
        if dataset is not None:
            return dataset
        _build(source, path, root, max_bad, progress)
        dataset, damage = _try_open(path, source.fingerprint)
        if dataset is None:
            raise UserError(f"{path} was just written but cannot be used because {damage}. Is the disk sound?")
    dataset.rebuilt, dataset.from_cache = reason, False
    return dataset


def _build(source: _Source, path: Path, root: Path, max_bad: int, progress: Progress) -> None:
    with cache.writing_errors(path.parent), cache.replacing(path) as folder:
        if source.listing is not None:
            packed = _pack_folder(source.listing, source.image_size, folder, max_bad, progress)
        elif source.name in caltech101.FOLDERS:
            packed = _pack_caltech101(source, folder, root / "downloads", max_bad, progress)
        else:
            packed = _pack_named(source, folder, root / "downloads", progress)
        progress(len(packed.labels), len(packed.labels), "checking")
        for name in ("labels", "parts", "sums"):
            np.save(folder / f"{name}.npy", getattr(packed, name), allow_pickle=False)
        cache.write_meta(folder, _meta(source, packed))


def _meta(source: _Source, packed: _Packed) -> dict[str, Any]:
    return {
        "name": source.name,
        "source": source.source,
        "fingerprint": source.fingerprint,
        "image_size": source.image_size,
        "classes": packed.classes,
        "flip": packed.flip,
        "bad_files": packed.bad_files,
        "ignored_files": packed.ignored_files,
        "notes": packed.notes,
    }


def _pack_named(source: _Source, folder: Path, downloads: Path, progress: Progress) -> _Packed:
    found = load_named(source.name, downloads, lambda what: progress(0, 0, what))
    side, count = stored_side(source.image_size), len(found.labels)
    offset = _create_images(folder, count, side)
    sums = np.empty((count, 3, 2), np.int64)
    with (folder / "images.npy").open("r+b") as file:
        file.seek(offset)
        for start, stop in _chunks(count, side):
            block = _resized(found.images[start:stop], side)
            sums[start:stop] = channel_sums(block)
            file.write(block.tobytes())
            progress(stop, count, "packing")
    return _Packed(found.classes, found.labels, found.parts, sums, [], 0, [], found.flip)


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    if images.shape[1:3] == (side, side):
        return images
    return np.stack([np.asarray(fit_square(Image.fromarray(image), side)) for image in images])


def _pack_caltech101(source: _Source, folder: Path, downloads: Path, max_bad: int, progress: Progress) -> _Packed:
    unpacked = caltech101.unpack_caltech101(
        downloads,
        folder / "unpacked",
        background=caltech101.FOLDERS[source.name],
        say=lambda what: progress(0, 0, what),
    )
    packed = _pack_folder(scan(unpacked), source.image_size, folder, max_bad, progress)
    shutil.rmtree(unpacked)
    bad_files = [file._replace(path=os.path.relpath(file.path, unpacked)) for file in packed.bad_files]
    return replace(packed, bad_files=bad_files)


def _pack_folder(listing: Listing, image_size: int, folder: Path, max_bad: int, progress: Progress) -> _Packed:
    side, count = stored_side(image_size), len(listing.files)
    offset = _create_images(folder, count, side)
    sums = np.zeros((count, 3, 2), np.int64)
    bad: dict[int, BadFile] = {}
    done = animated = 0
    progress(0, count, "decoding")
    for start, chunk in _decoded(listing.paths(), side, folder / "images.npy", offset):
        sums[start : start + len(chunk.sums)] = chunk.sums
        bad.update({start + position: file for position, file in chunk.bad})
        animated += chunk.animated
        done += len(chunk.sums)
        progress(done, count, "decoding")

    bad_files = [bad[row] for row in sorted(bad)]
    good = np.setdiff1d(np.arange(count), list(bad))
    _check_bad(bad_files, max_bad)
    _check_every_class(listing, good)
    if bad:
        _drop_rows(folder / "images.npy", good, side, offset)
    notes = listing.notes + ([f"{animated} animated files: first frame taken"] if animated else [])
    labels, parts = listing.labels[good], listing.parts[good]
    return _Packed(listing.classes, labels, parts, sums[good], bad_files, listing.ignored, notes)


def _decoded(paths: list[str], side: int, target: Path, offset: int) -> Iterator[tuple[int, DecodedChunk]]:
    """Decode chunks of files in whatever order they finish; gives the first row of each."""
    chunks = list(_chunks(len(paths), side))
    if len(paths) < _ALONE_BELOW:
        yield from (_decode_rows(paths[a:b], a, side, str(target), offset) for a, b in chunks)
        return
    from joblib import Parallel, delayed  # noqa: PLC0415 - a small folder needs no workers
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415

    # Workers go soon after: they would otherwise stay for five minutes beside the training.
    parallel = Parallel(n_jobs=-1, return_as="generator_unordered", backend="loky", idle_worker_timeout=5)
    try:
        yield from parallel(delayed(_decode_rows)(paths[a:b], a, side, str(target), offset) for a, b in chunks)
    except TerminatedWorkerError as err:
        raise UserError(
            "a process that decoded images was killed, perhaps for lack of memory. "
            "Fewer of them at once: LOKY_MAX_CPU_COUNT=1 in the environment."
        ) from err


def _decode_rows(paths: list[str], start: int, side: int, target: str, offset: int) -> tuple[int, DecodedChunk]:
    return start, decode_chunk(paths, side, target, offset + start * side * side * 3)


def _chunks(count: int, side: int) -> Iterable[tuple[int, int]]:
    size = min(256, max(1, _CHUNK_BYTES // (side * side * 3)))
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _create_images(folder: Path, count: int, side: int) -> int:
    """Create ``images.npy`` at full size, its space reserved; gives where the pixels begin, in bytes."""
    size = count * side * side * 3
    cache.check_space(folder, size + count * 64)
    with (folder / "images.npy").open("wb") as file:
        _write_header(file, count, side)
        offset = file.tell()
        file.truncate(offset + size)
        _reserve(file.fileno(), offset, size)
    return offset


def _reserve(handle: int, offset: int, size: int) -> None:
    """Take the space now, so that a disk without room says so before the work rather than after it."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(handle, offset, size)
    except OSError as err:
        if err.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot
            raise


def _write_header(file: Any, count: int, side: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _drop_rows(path: Path, good: np.ndarray, side: int, offset: int) -> None:
    """Keep only these rows of ``images.npy``, moving them up in place: a copy might not fit on the disk."""
    images = np.load(path, mmap_mode="r+", allow_pickle=False)
    for start, stop in _chunks(len(good), side):
        images[start:stop] = images[good[start:stop]]
    images.flush()
    del images  # the map goes before its file is shortened
    with path.open("r+b") as file:
        _write_header(file, len(good), side)
        assert file.tell() == offset  # numpy leaves room in the header for any count
        file.truncate(offset + len(good) * side * side * 3)


def _check_bad(bad: list[BadFile], max_bad: int) -> None:
    if len(bad) > max_bad:
        first = "; ".join(f"{file.path}: {file.reason}" for file in bad[:3])
        raise UserError(
            f"{len(bad)} files cannot be read and at most {max_bad} are skipped: {first}"
            f"{'; ...' if len(bad) > 3 else ''}. Repair or remove them, or allow --max-bad {len(bad)}."
        )


def _check_every_class(listing: Listing, good: np.ndarray) -> None:
    kinds = np.unique(listing.parts * np.int64(len(listing.classes)) + listing.labels, return_index=True)
    readable = np.zeros(len(listing.files), bool)
    readable[good] = True
    # Files lie class by class, so a class of a part is the run from its first file to the next class's.
    firsts = np.sort(kinds[1])
    for first, any_readable in zip(firsts, np.logical_or.reduceat(readable, firsts), strict=True):
        if not any_readable:
            folder = (listing.root / listing.files[first]).parent
            raise UserError(
                f"no file of class {listing.classes[listing.labels[first]]!r} in {folder} can be read. "
                "Repair the files or remove the class."
            )


def _silent(done: int, total: int, what: str) -> None:
    pass
