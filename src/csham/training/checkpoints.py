"""Checkpoints that a killed process never leaves half-written, read whole and without running what is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from csham.backbones.weights import check_finite
from csham.errors import UserError
from csham.layers.channel import in_todays_names
from csham.training.sums import check_unchanged, write_listed

__all__ = [
    "FORMAT",
    "answering_weights",
    "check_weights",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
    "writer_of",
]

FORMAT = 1
"""Raised when a checkpoint's content changes in a way that older code cannot read."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, with the version of its format.

    Args:
        path: Such as ``RUN/checkpoints/last.ckpt``.
        content: Tensors and plain values.
    """
    write_listed({path: writer_of(content)})


def writer_of(content: Mapping[str, Any]) -> Callable[[IO[bytes]], None]:
    """Return a function that writes a checkpoint to an open file."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as err:
            # A full disk stops torch.save twice; what it says the second time hides the cause.
            if isinstance(err.__context__, OSError):
                raise err.__context__ from None
            raise

    return write


def load_checkpoint(path: Path, expected: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing but tensors and plain values is accepted.

    Args:
        path: The file.
        expected: Keys it must have.

    Raises:
        UserError: It is missing, truncated, changed, of another kind, or contains something that would have to be run.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}. {_what_to_do(path)}")
    if not check_unchanged(path, _what_to_do(path)):
        _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise UserError(
            f"{path} holds something other than tensors and plain values, or is damaged. It was not loaded, "
            "and nothing in it was run. Use a checkpoint that csham wrote."
        ) from err
    except Exception as err:  # whatever damaged files make torch raise
        raise UserError(f"{path} is damaged or not a checkpoint. {_what_to_do(path)}") from err
    if not isinstance(content, dict) or content.get("format") != FORMAT or not set(expected) <= set(content):
        raise UserError(f"{path} is not a checkpoint of this version of csham (format {FORMAT}).")
    return content


def answering_weights(content: Mapping[str, Any]) -> Any:
    """Return the weights that a run measures and leaves behind: their average, where it keeps one."""
    return content.get("model_ema", content["model"])


def _check_archive(path: Path) -> None:
    """Look at the checksums in the archive itself, which torch does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise zipfile.BadZipFile("torch compresses nothing")
            if (first := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {first[:80]!r} is another")
    except Exception as err:  # whatever damaged files make zipfile raise
        raise UserError(f"{path} is damaged, truncated or not a checkpoint: {err}. {_what_to_do(path)}") from err


def _what_to_do(path: Path) -> str:
    """Say what can be had without a checkpoint of a run."""
    run = path.parent.parent
    last, best = path.name == "last.ckpt", path.with_name("best.ckpt")
    if last and best.is_file():
        return f"csham train --resume {run} goes on from {best.name}; --weights best evaluates that."
    if not last and path.with_name("last.ckpt").is_file():
        return f"The chosen weights have no other copy. Those of the last epoch: csham evaluate {run} --weights last."
    return f"Train again: csham train --config {run / 'config.yaml'} --run DIR."


def load_weights(network: nn.Module, weights: Mapping[str, Any], what: str) -> None:
    """Load weights that must fit exactly.

    Args:
        network: Takes the weights.
        weights: Its state dict, as read from a file.
        what: The file and the network, for the message.

    Raises:
        UserError: They belong to another architecture; names the first difference.
    """
    check_weights(network, {name: _shape(value) for name, value in weights.items()}, what)
    check_finite(weights, what)
    network.load_state_dict(dict(weights))


def check_weights(network: nn.Module, shapes: Mapping[str, tuple[int, ...] | str], what: str) -> None:
    """Refuse weights that do not fit exactly, by their names and shapes.

    Args:
        network: Is to take the weights.
        shapes: Of each weight; a word for what is none.
        what: The file and the network, for the message.

    Raises:
        UserError: They belong to another architecture; names the first difference.
    """
    state = network.state_dict()
    shapes = in_todays_names(network, shapes)
    for name in state:
        if name not in shapes:
            raise UserError(f"{what}: other architecture, it has no weight {name!r}.")
    for name, shape in shapes.items():
        if name not in state:
            raise UserError(f"{what}: other architecture, the network has no weight {name[:200]!r}.")
        expected = tuple(state[name].shape)
        if shape != expected:
            raise UserError(f"{what}: other architecture, {name!r} is {shape}, not {expected}.")


def _shape(value: object) -> tuple[int, ...] | str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else tuple(shape)
