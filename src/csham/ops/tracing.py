"""Test for tracing by torch.export."""

from __future__ import annotations

import torch

__all__ = ["exporting"]


def exporting() -> bool:
    """Return True if torch.export is tracing, and not torch.compile alone."""
    return torch.compiler.is_exporting()


# What torch.compiler.assume_constant_result does, which would import torch._dynamo first. The older torch.compile takes
# is_exporting() for True wherever it reads it (2.11 does), while a constant function is called and says how it is.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
