"""Formats that a network can be exported to, and what of a request can be refused at once; importable without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from csham.errors import UserError, any_of
from csham.settings import check_choice

__all__ = ["FORMATS", "Format", "check_format", "check_free", "format_of"]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: Word that functions and options take.
        ending: Of its files.
        writer: Function that writes a :class:`csham.export.program.Content` to a path, as ``"module:name"``.
        opener: Function that makes of the path of such a file one from images to logits, likewise.
        graph: It holds a captured program, which can take bytes and images of any size; else weights.
        takes_opset: Its writer chooses among versions of ONNX's operators.
        packages: Those of the extra ``export`` that it needs, as ``import`` calls them.
    """

    name: str
    ending: str
    writer: str
    opener: str
    graph: bool = True
    takes_opset: bool = False
    packages: tuple[str, ...] = ()

    def write(self, content: Any, path: Any) -> None:
        """Write a file."""
        resolve_name(self.writer)(content, path)

    def open(self, path: Any) -> Any:
        """Return a function that runs a file which this process wrote."""
        return resolve_name(self.opener)(path)


FORMATS = {
    entry.name: entry
    for entry in [
        Format(
            "onnx",
            ".onnx",
            "csham.export.files:write_onnx",
            "csham.export.files:open_onnx",
            takes_opset=True,
            packages=("onnx", "onnxruntime", "onnxscript"),
        ),
        Format("pt2", ".pt2", "csham.export.files:write_pt2", "csham.export.files:open_pt2"),
        Format(
            "safetensors",
            ".safetensors",
            "csham.export.files:write_weights_file",
            "csham.export.files:open_weights_file",
            graph=False,
        ),
    ]
}
"""Every format by its name."""


def check_format(
    format: str, *, preprocessing: bool = False, dynamic_size: bool = False, opset: int | None = None
) -> None:
    """Refuse a format that there is not, that cannot do what is asked, or that packages are missing for.

    Args:
        format: One of :data:`FORMATS`.
        preprocessing: Whether the file is to take bytes.
        dynamic_size: Whether it has to take images of any size.
        opset: The version of ONNX's operators, if one was asked for.

    Raises:
        UserError: It is one of these.
    """
    check_choice("format", format, FORMATS)
    entry = FORMATS[format]
    if not entry.graph and (preprocessing or dynamic_size):
        graphs = any_of([other.name for other in FORMATS.values() if other.graph], "and")
        raise UserError(f"{format} holds weights, no graph: preprocessing and dynamic size are for {graphs}.")
    if not entry.takes_opset and opset is not None:
        raise UserError(f"an opset is a version of ONNX's operators; the format is {format}.")
    missing = [name for name in entry.packages if find_spec(name) is None]
    if missing:
        raise UserError(f'export to {format} needs {", ".join(missing)}. Install them: pip install "csham[export]".')


def format_of(path: Path) -> str:
    """Return the name of the format that a file's ending stands for.

    Raises:
        UserError: It stands for none.
    """
    for entry in FORMATS.values():
        if entry.ending == path.suffix.lower():
            return entry.name
    endings = any_of([entry.ending for entry in FORMATS.values()])
    raise UserError(
        f"{path} does not say what to write. Let it end in {endings}, or name a format with --format (format=...)."
    )


def check_free(path: Path, force: bool) -> None:
    """Refuse to replace what exists, unless ``force`` and it is a file, never a device or a pipe; and to write nowhere.

    Raises:
        UserError: Something is there, or its folder is a file or not writable.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file. Name a file.")
    if path.exists() and not force:
        raise UserError(f"{path} exists already. Name another file, or replace it with --force (force=True).")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise UserError(f"cannot make {path}: {place} is a file. Name another file with --output (path=...).")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot make {path}: {place} is not writable. Name another file with --output (path=...).")
