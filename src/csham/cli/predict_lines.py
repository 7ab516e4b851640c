"""Answers as lines: a table for people, JSON Lines and CSV for programs; each as soon as it is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len

from csham.data.decode import BadFile
from csham.words import printable

if TYPE_CHECKING:
    from csham.inference import Prediction

__all__ = ["Lines", "as_bytes", "csv_lines", "json_lines", "table_lines"]

_WIDEST_NAME = 40


class Lines(NamedTuple):
    """A way to write answers.

    Attributes:
        head: Text before the first, with its line end; may be empty.
        of: Writes one answer, with its line end.
    """

    head: str
    of: Callable[[Prediction | BadFile], str]


def json_lines() -> Lines:
    """An object for each image, in ASCII alone: no name can break a line or be invalid."""

    def write(result: Prediction | BadFile) -> str:
        if isinstance(result, BadFile):
            return json.dumps({"path": result.path, "error": result.reason}) + "\n"
        pairs = zip(result.classes, result.probabilities, strict=True)
        answers = [{"class": name, "probability": float(_digits(value))} for name, value in pairs]
        return json.dumps({"path": result.path, "predictions": answers}) + "\n"

    return Lines("", write)


def csv_lines(top_k: int) -> Lines:
    """A row for each image: its path, ``top_k`` classes with their probabilities, and why it could not be read."""

    def write(result: Prediction | BadFile) -> str:
        if isinstance(result, BadFile):
            return _csv_row([result.path, *[""] * (2 * top_k), result.reason])
        pairs = zip(result.classes, map(_digits, result.probabilities), strict=True)
        return _csv_row([result.path, *(cell for pair in pairs for cell in pair), ""])

    columns = [f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("class", "probability")]
    return Lines(_csv_row(["path", *columns, "error"]), write)


def table_lines(classes: Sequence[str]) -> Lines:
    """A row for each class of an image, whose path stands in its first; last, since paths may be of any length."""
    width = min(max(cell_len(printable(name)) for name in ["class", *classes]), _WIDEST_NAME)

    def row(name: str, probability: str, path: str) -> str:
        return f"{name}{' ' * (width - cell_len(name))}  {probability:>11}  {path}".rstrip() + "\n"

    def write(result: Prediction | BadFile) -> str:
        path = printable(result.path)
        if isinstance(result, BadFile):
            return row("-", "", f"{path}: {result.reason}")
        pairs = zip(result.classes, result.probabilities, strict=True)
        rows = (row(printable(name), f"{value:.2%}", "" if rank else path) for rank, (name, value) in enumerate(pairs))
        return "".join(rows)

    return Lines(row("class", "probability", "image"), write)


def as_bytes(text: str) -> bytes:
    """Encode as UTF-8, giving back the bytes of paths that are none."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which no path holds, but a class name in a file may
        return text.encode("utf-8", "backslashreplace")


def _digits(value: float) -> str:
    return f"{value:.7g}"  # all that float32 has


def _csv_row(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
