"""The commands of ``csham``: one file each, which parses, calls the room that does the work, and prints.

Start with :func:`main`, which turns every exception into a sentence and an exit code: 0 done, 1 our fault, 2
what was given cannot work, 130 Ctrl-C, 143 SIGTERM, 138
SIGUSR1, 142 the end of --minutes. Nothing here imports PyTorch before names and folders are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from csham._lazy import how_to_install

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see :func:`csham.cli.commands.main`."""
    try:
        from csham.cli.commands import main as run  # noqa: PLC0415  an extra has what it is made of
    except ModuleNotFoundError as err:
        message = how_to_install("the command line", err)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    return run(argv)
