"""Source to packed dataset: open the cache where it is whole and fresh, otherwise build it on all cores."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csham.data import cache
from csham.data.dataset import PackedDataset, stored_side
from csham.data.decode import BadFile, DecodedChunk, decode_chunk, is_hindered
from csham.data.sources import Chunk, Images, Listing, Source, Workplace, open_source
from csham.data.sources.base import chunk_images
from csham.errors import UserError
from csham.files import cache_root, new_folder
from csham.words import counted

__all__ = ["open_packed", "prepare"]

Progress = Callable[[int, int, str], None]

_ALONE_BELOW = 2000  # files: starting workers takes as long as decoding about so many


def prepare(
    data: str | Path | Source,
    *,
    image_size: int | None = None,
    cache_dir: Path | None = None,
    max_bad: int = 10,
    thorough: bool = False,
    progress: Progress | None = None,
) -> PackedDataset:
    """Open a dataset, packing it first where no whole and fresh cache of it exists.

    Args:
        data: A name of ``DATASETS``, the path of an image folder, of a CSV or TSV table, of a zip or tar of an image
            folder or of Parquet files (a ``Path`` is never a name), or a :class:`csham.data.Source` of your own.
        image_size: Side in pixels of what the network sees, 8 to 1024. By default that of ``IMAGE_SIZES`` for a
            named dataset, and for others the largest usual size (32, 64, 96, 128, 160, 224) that its images fill.
        cache_dir: Folder of caches and downloads; default ``$CSHAM_CACHE``, ``$XDG_CACHE_HOME/csham`` or
            ``~/.cache/csham``.
        max_bad: Number of unreadable files to skip before it counts as an error.
        thorough: Compare all pixels of a cache with their checksum, also where it is larger than 2 GiB and none of its
            files was written to since that was done.
        progress: Called with images done, images in all (0: not known) and what is being done.

    Raises:
        UserError: ``data`` names nothing that is known, what it names cannot be trained on, too many images
            are unreadable, a download failed, or the cache cannot be written.
    """
    _check_size(image_size)
    root = cache_root(cache_dir)
    source = open_source(data)
    size = image_size or source.default_size()
    path = cache.entry_path(root, source.name, source.location, size)
    dataset, _ = _try_open(path, source, thorough=thorough)
    if dataset is None:
        dataset = _build_alone(source, size, path, root, max_bad, progress or (lambda *_: None), thorough=thorough)
    _check_bad(dataset.bad_files, max_bad, source)
    return dataset


def open_packed(data: str | Path | Source, *, image_size: int, cache_dir: Path | None = None) -> PackedDataset | None:
    """Open a dataset that is packed already; nothing is packed or downloaded.

    Args:
        data: See :func:`prepare`.
        image_size: Side in pixels of what the network sees.
        cache_dir: See :func:`prepare`.

    Returns:
        The dataset; None where no whole and fresh cache of it exists.

    Raises:
        UserError: ``data`` names nothing that is there.
    """
    source = open_source(data)
    path = cache.entry_path(cache_root(cache_dir), source.name, source.location, image_size)
    dataset, _ = _try_open(path, source, thorough=False)
    return dataset


@dataclass
class _Packed:
    """Findings of packing, beside the pixels that it wrote to ``images.npy``."""

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


def _try_open(path: Path, source: Source, *, thorough: bool) -> tuple[PackedDataset | None, str | None]:
    """The cached dataset, or None with the reason why what is there cannot be used."""
    try:
        dataset = cache.open_entry(path, source.fingerprint, thorough=thorough)
    except cache.Damaged as why:
        return None, str(why)
    if dataset is None:
        return None, None
    if _readable_now(dataset.bad_files, source):
        return None, "files that could not be read then can be read now"
    if not _name_files(dataset, source):
        return None, "its source is read otherwise now"
    return dataset, None


def _name_files(dataset: PackedDataset, source: Source) -> bool:
    """Note the files of a dataset that has some; False if classes, labels or parts are not what its source says."""
    listing = source.listing
    if listing is None:
        return True
    bad = {file.path for file in dataset.bad_files}
    good = [row for row, name in enumerate(listing.names()) if name not in bad]
    dataset.files = [listing.files[row] for row in good]
    return (
        dataset.classes == tuple(listing.classes)
        and np.array_equal(dataset.labels, listing.labels[good])
        and np.array_equal(dataset.parts, listing.parts[good])
    )


def _readable_now(bad: list[BadFile], source: Source) -> bool:
    """Return True if a file that something kept from being read can be read now, which its fingerprint does not say."""
    hindered = {file.path for file in bad if is_hindered(file)}
    if not hindered or source.listing is None:
        return False
    pairs = zip(source.listing.paths(), source.listing.names(), strict=True)
    for path in [path for path, name in pairs if name in hindered]:
        with contextlib.suppress(OSError):
            if Path(path).is_file():  # not a pipe, which could wait for ever
                Path(path).read_bytes()
                return True
    return False


def _build_alone(
    source: Source, size: int, path: Path, root: Path, max_bad: int, progress: Progress, *, thorough: bool
) -> PackedDataset:
    """Build the cache entry, unless another process does so first."""
    with cache.locked(path, lambda: progress(0, 0, "waiting for another process that packs the same images")):
        dataset, reason = _try_open(path, source, thorough=thorough)
        if dataset is not None:
            return dataset
        if reason is not None:
            warnings.warn(f"{source.name} is packed anew: {reason}", stacklevel=3)
        _build(source, size, path, root, max_bad, progress)
        try:
            dataset = cache.open_entry(path, source.fingerprint, thorough=thorough)
        except cache.Damaged as damage:
            raise UserError(
                f"{path} was just written but cannot be used because {damage}. Is the disk sound?"
            ) from damage
    assert dataset is not None  # nobody else replaces it meanwhile
    _name_files(dataset, source)
    dataset.rebuilt, dataset.from_cache = reason, False
    return dataset


def _build(source: Source, size: int, path: Path, root: Path, max_bad: int, progress: Progress) -> None:
    with cache.writing_errors(path.parent), new_folder(path, replace=True) as folder:
        scratch = folder / "scratch"
        images = source.load(Workplace(root / "downloads", scratch, lambda what: progress(0, 0, what)))
        packed = _pack(source, images, size, folder, max_bad, progress)
        if scratch.exists():
            shutil.rmtree(scratch)
        progress(len(packed.labels), len(packed.labels), "checking")
        for name in ("labels", "parts", "sums"):
            np.save(folder / f"{name}.npy", getattr(packed, name), allow_pickle=False)
        cache.write_meta(folder, _meta(source, size, packed))


def _meta(source: Source, size: int, packed: _Packed) -> dict[str, Any]:
    return {
        "name": source.name,
        "source": source.location,
        "fingerprint": source.fingerprint,
        "image_size": size,
        "classes": packed.classes,
        "flip": packed.flip,
        "bad_files": packed.bad_files,
        "ignored_files": packed.ignored_files,
        "notes": packed.notes,
    }


def _pack(source: Source, images: Images, image_size: int, folder: Path, max_bad: int, progress: Progress) -> _Packed:
    listing, doing = images.listing, "packing" if images.decoded else "decoding"
    side, count = stored_side(image_size), len(listing.labels)
    offset = _create_images(folder, count, side)
    sums = np.zeros((count, 3, 2), np.int64)
    bad: dict[int, BadFile] = {}
    done = animated = 0
    progress(0, count, doing)
    for rows, chunk in _decoded(images, side, folder / "images.npy", offset):
        sums[rows] = chunk.sums
        bad.update({rows[position]: file for position, file in chunk.bad})
        animated += chunk.animated
        done += len(rows)
        progress(done, count, doing)
    if done != count:
        raise UserError(
            f"{listing.root} gave {done:,} of {count:,} images: has it changed while it was read? Try again."
        )

    names = listing.names() if bad else []
    bad_files = [bad[row]._replace(path=names[row]) for row in sorted(bad)]
    good = np.setdiff1d(np.arange(count), list(bad))
    _check_bad(bad_files, max_bad, source, all_bad=not len(good))
    _check_every_class(listing, good, source)
    if bad:
        _drop_rows(folder / "images.npy", good, side, offset)
    notes = listing.notes + ([f"{animated} animated files: first frame taken"] if animated else [])
    labels, parts = listing.labels[good], listing.parts[good]
    return _Packed(listing.classes, labels, parts, sums[good], bad_files, listing.ignored, notes, images.flip)


def _decoded(images: Images, side: int, target: Path, offset: int) -> Iterator[tuple[Sequence[int], DecodedChunk]]:
    """Decode chunks of images in whatever order they finish; gives the rows of each."""
    stopped: list[Exception] = []
    chunks = _until_error(images.chunks(chunk_images(side)), stopped)
    if images.decoded or len(images.listing.labels) < _ALONE_BELOW:
        yield from (_decode_rows(chunk, side, str(target), offset) for chunk in chunks)
    else:
        yield from _decoded_by_workers(chunks, side, str(target), offset)
    if stopped:
        raise stopped[0]


def _until_error(chunks: Iterator[Chunk], stopped: list[Exception]) -> Iterator[Chunk]:
    """Keep an error of the source for later: joblib reads in a thread of its own, where it would be lost."""
    try:
        yield from chunks
    except Exception as err:
        stopped.append(err)


def _decoded_by_workers(
    chunks: Iterator[Chunk], side: int, target: str, offset: int
) -> Iterator[tuple[Sequence[int], DecodedChunk]]:
    from joblib import Parallel, delayed  # noqa: PLC0415 - a small source needs no workers
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415

    # Workers go soon after: they would otherwise stay for five minutes beside the training.
    parallel = Parallel(n_jobs=-1, return_as="generator_unordered", backend="loky", idle_worker_timeout=5)
    try:
        yield from parallel(delayed(_decode_rows)(chunk, side, target, offset) for chunk in chunks)
    except TerminatedWorkerError as err:
        raise UserError(
            "a process that decoded images was killed, perhaps for lack of memory. "
            "Fewer of them at once: LOKY_MAX_CPU_COUNT=1 in the environment."
        ) from err


def _decode_rows(chunk: Chunk, side: int, target: str, offset: int) -> tuple[Sequence[int], DecodedChunk]:
    return chunk.rows, decode_chunk(chunk.contents, side, target, offset, chunk.rows)


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
    size = chunk_images(side)
    for start in range(0, len(good), size):
        stop = min(start + size, len(good))
        images[start:stop] = images[good[start:stop]]
    images.flush()
    del images  # the map goes before its file is shortened
    with path.open("r+b") as file:
        _write_header(file, len(good), side)
        assert file.tell() == offset  # numpy leaves room in the header for any count
        file.truncate(offset + len(good) * side * side * 3)


def _check_bad(bad: list[BadFile], max_bad: int, source: Source, *, all_bad: bool = False) -> None:
    if len(bad) > max_bad:
        first = "; ".join(f"{file.path}: {file.reason}" for file in bad[:3])
        allow = "" if all_bad else f", or allow --max-bad {len(bad)}"
        raise UserError(
            f"{counted(len(bad), 'file')} of {source.location} cannot be read and at most {max_bad} are skipped: "
            f"{first}{'; ...' if len(bad) > 3 else ''}. Repair or remove them{allow}."
        )


def _check_every_class(listing: Listing, good: np.ndarray, source: Source) -> None:
    kinds, firsts = np.unique(listing.parts * np.int64(len(listing.classes)) + listing.labels, return_index=True)
    readable = listing.parts[good] * np.int64(len(listing.classes)) + listing.labels[good]
    for kind, first in sorted(zip(kinds, firsts, strict=True), key=lambda pair: pair[1]):
        if kind not in readable:
            raise UserError(
                f"no file of class {listing.classes[listing.labels[first]]!r} in {source.location} can be read, such "
                f"as {listing.names()[first]}. Repair the files or remove the class."
            )
