"""PT2: the program that torch.export captured, for PyTorch without csham and for what compiles such programs."""

from __future__ import annotations

from pathlib import Path

import torch

from csham.export.parity import Runner
from csham.export.program import Content

__all__ = ["open_pt2", "write_pt2"]


def write_pt2(content: Content, path: Path) -> None:
    """Write a captured program, each value of the metadata as a file of the archive."""
    program = content.program
    assert program is not None
    # The input it was traced with is as large as a small network, and lets torch refuse inputs whose tensors only lie
    # otherwise in memory, such as maps of one position. That the program holds at other sizes is found by asking it.
    program.example_inputs = None
    torch.export.save(program, path, extra_files=dict(content.metadata))


def open_pt2(path: Path) -> Runner:
    """Return a function that runs a file that this process wrote; :func:`torch.export.load` unpickles."""
    run: Runner = torch.export.load(path).module()
    return run
