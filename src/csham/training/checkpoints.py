"""Checkpoints that a killed process never leaves half-written, read without running what is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from csham.errors import UserError
from csham.files import write_atomically
from csham.layers.channel import in_todays_names

__all__ = ["FORMAT", "check_weights", "load_checkpoint", "load_weights", "save_checkpoint"]

FORMAT = 1
"""Raised when a checkpoint's content changes in a way that older code cannot read."""


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, with the version of its format.

    Args:
        path: Such as ``RUN/checkpoints/last.ckpt``.
        content: Tensors and plain values.
    """

    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as err:
            # A full disk stops torch.save twice; what it says the second time hides the cause.
            if isinstance(err.__context__, OSError):
                raise err.__context__ from None
            raise

    write_atomically(path, write)


def load_checkpoint(path: Path, expected: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing but tensors and plain values is accepted.

    Args:
        path: The file.
        expected: Keys it must have.

    Raises:
        UserError: It is missing, truncated, of another kind, or contains something that would have to be run.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}.")
    if not zipfile.is_zipfile(path):  # its directory is at its end
        raise UserError(f"{path} is truncated or not a checkpoint. {_another(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise UserError(
            f"{path} holds something other than tensors and plain values, or is damaged. It was not loaded, "
            "and nothing in it was run. Use a checkpoint that csham wrote."
        ) from err
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError) as err:
        raise UserError(f"{path} is damaged or not a checkpoint. {_another(path)}") from err
    if not isinstance(content, dict) or content.get("format") != FORMAT or not set(expected) <= set(content):
        raise UserError(f"{path} is not a checkpoint of this version of csham (format {FORMAT}).")
    return content


def _another(path: Path) -> str:
    other = path.with_name("best.ckpt" if path.name == "last.ckpt" else "last.ckpt")
    if other.is_file():
        return f"To go on from {other.name}, copy it over {path.name}."
    return "Start the run again."


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
    own = network.state_dict()
    shapes = in_todays_names(network, shapes)
    for name in own:
        if name not in shapes:
            raise UserError(f"{what}: other architecture, it has no weight {name!r}.")
    for name, given in shapes.items():
        if name not in own:
            raise UserError(f"{what}: other architecture, the network has no weight {name[:200]!r}.")
        expected = tuple(own[name].shape)
        if given != expected:
            raise UserError(f"{what}: other architecture, {name!r} is {given}, not {expected}.")


def _shape(value: object) -> tuple[int, ...] | str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else tuple(shape)
