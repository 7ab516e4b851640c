"""safetensors: the weights alone, with what builds the network again."""

from __future__ import annotations

from pathlib import Path

from csham.export.parity import Runner
from csham.export.program import Content
from csham.inference import load
from csham.training.network import write_weights

__all__ = ["open_weights_file", "write_weights_file"]


def write_weights_file(content: Content, path: Path) -> None:
    """Write the weights of a network, and which network it is."""
    trained = content.trained
    write_weights(path, trained.network.state_dict(), trained.info, trained.run_weights)


def open_weights_file(path: Path) -> Runner:
    """Return the network that a file makes."""
    return load(path).network
