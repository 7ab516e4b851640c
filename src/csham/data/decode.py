"""One image to one square of RGB bytes, whatever its file turns out to be.

Runs in worker processes: imports only the standard library, numpy and Pillow.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "BadFile",
    "Content",
    "DecodedChunk",
    "Encoded",
    "Unreadable",
    "channel_sums",
    "decode",
    "decode_chunk",
    "fit_square",
    "image_suffixes",
    "is_hindered",
    "open_image",
    "reason",
    "square_pixels",
]

# Of an image as it is decoded; Pillow warns of more. Up to 0.4 GB, 0.7 where it is turned or transparent, 1.4 of WebP.
MOST_PIXELS = 89_478_485

_BAND = 2**20  # pixels of which copies are made at a time, in an image of many

# Stubs without a decoder, and formats that Pillow hands to another program or to the operating system.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class BadFile(NamedTuple):
    """A file that could not be decoded, and why in plain words."""

    path: str
    reason: str


class Encoded(NamedTuple):
    """An image file that lies within another: its name there, and its bytes."""

    name: str
    data: bytes


class Unreadable(NamedTuple):
    """An image whose bytes are not to be had, and why in plain words."""

    name: str
    reason: str


# What an image is read from: a file's path, a file within another, pixels (H, W, 3) uint8, or nothing.
Content = str | Encoded | np.ndarray | Unreadable


class DecodedChunk(NamedTuple):
    """Report of :func:`decode_chunk` about the images it decoded."""

    sums: np.ndarray  # (n, 3, 2) int64
    bad: list[tuple[int, BadFile]]  # position in the chunk, file
    animated: int


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow can decode by itself."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """File name endings of those formats: lower case, with their dot."""
    formats = set(image_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def open_image(content: str | Path | Encoded) -> Image.Image:
    """Open an image file as what its name says, or as whatever else its content is; reads only the header.

    Raises:
        Exception: Whatever Pillow raises for a file it cannot open.
    """
    image_formats()
    name = content.name if isinstance(content, Encoded) else content
    named = Image.registered_extensions().get(os.path.splitext(name)[1].lower())  # noqa: PTH122 - Path is slow
    if named in image_formats():
        with contextlib.suppress(UnidentifiedImageError):
            return Image.open(_file(content), formats=[named])  # asking every format takes longer than a small image
    return Image.open(_file(content), formats=image_formats())


def _file(content: str | Path | Encoded) -> str | Path | io.BytesIO:
    return io.BytesIO(content.data) if isinstance(content, Encoded) else content


def decode_chunk(
    contents: Sequence[Content], side: int, target: str, offset: int, rows: Sequence[int] | None = None
) -> DecodedChunk:
    """Decode images one after another and write their pixels into a file that exists.

    Args:
        contents: The images, n of them.
        side: Side of the squares in pixels.
        target: File that receives n * side * side * 3 bytes; those of bad images are zero.
        offset: Offset of row 0 in ``target``, in bytes.
        rows: The row of each image, rising; by default 0 to n - 1.

    Raises:
        OSError: ``target`` cannot be written.
    """
    pixels = np.zeros((len(contents), side, side, 3), np.uint8)
    bad: list[tuple[int, BadFile]] = []
    animated = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata: the pixels are what counts
        for position, content in enumerate(contents):
            try:
                if isinstance(content, Unreadable):
                    bad.append((position, BadFile(*content)))
                elif isinstance(content, np.ndarray):
                    pixels[position] = _fitted(content, side)
                else:
                    pixels[position], moving = decode(content, side)
                    animated += moving
            except Exception as err:  # Pillow's plugins raise anything from SyntaxError to struct.error
                bad.append((position, _bad_file(content, err)))
    # Written rather than stored through a memory map, where a full disk would be a bus error.
    with Path(target).open("r+b", buffering=0) as file:
        for first, last in _runs(range(len(contents)) if rows is None else rows):
            file.seek(offset + (rows[first] if rows is not None else first) * side * side * 3)
            rest = pixels[first:last].reshape(-1).data
            while rest:
                rest = rest[file.write(rest) :]
    return DecodedChunk(channel_sums(pixels), bad, animated)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Positions from which to which rows follow on each other."""
    breaks = [position for position in range(1, len(rows)) if rows[position] != rows[position - 1] + 1]
    bounds = [0, *breaks, len(rows)]
    return list(itertools.pairwise(bounds))


def _fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    return pixels if pixels.shape[:2] == (side, side) else np.asarray(fit_square(Image.fromarray(pixels), side))


def _bad_file(content: Content, err: Exception) -> BadFile:
    if isinstance(content, Encoded):
        return BadFile(content.name, reason("", err) if content.data else _EMPTY)
    name = content if isinstance(content, str) else ""
    return BadFile(name, reason(name, err))


def decode(content: str | Path | Encoded, side: int) -> tuple[np.ndarray, bool]:
    """Decode one image: upright, over white, as 8-bit RGB, its centre square resized to ``side``.

    Args:
        content: The file. Of an animation or a multi-page file the first frame is taken.
        side: Side of the square in pixels.

    Returns:
        Pixels, (side, side, 3) uint8, and whether the file holds more frames.

    Raises:
        Exception: Whatever Pillow raises for a file it cannot decode, and if it has more pixels than are decoded.
    """
    with open_image(content) as image:
        whole = image.size
        image.draft(None, (2 * side, 2 * side))  # JPEG only: decodes smaller, never below twice what is needed
        _check_pixels(whole if image.info.get("progressive") else image.size)  # of a progressive one all is held
        # MPO is a camera's JPEG with a preview or a second view behind the picture, no animation.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return square_pixels(image, side), animated


class _TooManyPixelsError(Exception):
    """An image that would take too much memory."""


def _check_pixels(size: tuple[int, int]) -> None:
    pixels = size[0] * size[1]
    if pixels > MOST_PIXELS:
        million, most = (f"{count / 1e6:,.1f}".removesuffix(".0") for count in (pixels, MOST_PIXELS))
        raise _TooManyPixelsError(f"too many pixels ({million} million, and at most {most} are decoded)")


def square_pixels(image: Image.Image, side: int) -> np.ndarray:
    """Bring an open image to what training sees: upright, over white, 8-bit RGB, its centre square.

    Args:
        image: Of any mode; it may be turned upright in place.
        side: Side of the square in pixels.

    Returns:
        Pixels, (side, side, 3) uint8.
    """
    image.load()
    with contextlib.suppress(Exception):  # garbled EXIF says nothing about which way is up
        ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(fit_square(_to_rgb(image), side))


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Resize the centre square of an RGB image to ``side`` pixels (bicubic), or only cut it if it fits."""
    width, height = image.size
    short = min(width, height)
    if width == height == side:
        return image
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)
    if short == side:
        return image.crop(box)
    # Resizing the square alone, not the whole image first: a strip of 1 x 100,000 pixels stays cheap.
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of every image's channels: (n, H, W, 3) uint8 to (n, 3, 2) int64."""
    n, H, W = pixels.shape[:3]
    rows = pixels.reshape(n, H, W * 3)
    squares = np.square(rows, dtype=np.uint16)  # 255 ** 2 fits
    # Columns first, over whole rows: three times as fast as summing with an inner dimension of 3.
    columns = [values.sum(1, dtype=np.uint32) for values in (rows, squares)]  # 65025 * H fits
    return np.stack([values.reshape(n, W, 3).sum(1, dtype=np.int64) for values in columns], axis=-1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    whole = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return whole


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Bring greyscale of more than 8 bits to 0..255.

    Integers are 16-bit (65535 is white) unless one is larger, then 31-bit. Floats are taken as 0..1, 0..255
    or 0..65535, the first that holds them all, and are stretched from least to greatest where none does.
    """
    bands = np.array_split(values, -(-values.size // _BAND))

    def numbers(band: np.ndarray) -> np.ndarray:
        return np.nan_to_num(band.astype(np.float64), posinf=0.0, neginf=0.0)

    extremes = [(float(band.min()), float(band.max())) for band in map(numbers, bands)]
    low, high = min(least for least, _ in extremes), max(most for _, most in extremes)
    start = 0.0
    if np.issubdtype(values.dtype, np.integer):
        white = 65535.0 if high <= 65535 else 2.0**31 - 1
    elif low >= 0 and high <= 65535:
        white = next(limit for limit in (1.0, 255.0, 65535.0) if high <= limit)
    else:
        start, white = low, (high - low) or 1.0
    scaled = (((numbers(band) - start).clip(0, white) * (255 / white)).round().astype(np.uint8) for band in bands)
    return np.concatenate(list(scaled))


def reason(path: str, err: Exception) -> str:
    """Say in plain words why a file could not be decoded: what :func:`decode` raised."""
    with contextlib.suppress(OSError, ValueError):  # a NUL in a path is a ValueError
        if path and Path(path).stat().st_size == 0:
            return _EMPTY
    if isinstance(err, _TooManyPixelsError):
        return str(err)
    for kind, words in _REASONS.items():
        if isinstance(err, kind):
            return words
    if isinstance(err, OSError) and err.strerror:
        return f"{_HINDERED}({err.strerror})"
    words = " ".join(str(err).split())
    if "truncated" in words.lower():
        return "truncated"
    return f"cannot be decoded ({words[:120] or type(err).__name__})"


def is_hindered(file: BadFile) -> bool:
    """Return True if a permission or the disk was at fault, which may change while the file does not."""
    return file.reason == _REASONS[PermissionError] or file.reason.startswith(_HINDERED)


_HINDERED = "cannot be read "
_EMPTY = "empty file (0 bytes)"
_REASONS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file (a broken link?)",
    PermissionError: "no permission to read it",
    UnidentifiedImageError: "not an image that Pillow can read",
    Image.DecompressionBombError: "far too many pixels (a decompression bomb?)",
    MemoryError: "too large for memory",
    EOFError: "truncated",
}
