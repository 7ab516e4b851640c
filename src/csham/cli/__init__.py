"""The commands of ``csham``: one file each, which parses, calls the room that does the work, and prints.

Start with :func:`main`, which turns every exception into a sentence and an exit code: 0 done, 1 our fault, 2
what was given cannot work, 130 Ctrl-C, 143 SIGTERM. Nothing here imports PyTorch before names and folders are checked.
"""

from __future__ import annotations

from csham.cli.commands import main

__all__ = ["main"]
