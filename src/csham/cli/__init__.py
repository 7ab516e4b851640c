"""The commands of ``csham``: one file each, which parses, calls the room that does the work, and prints.

Start with :func:`main`, which turns every exception into a sentence and an exit code: 0 done, 1 our fault, 2
what was given cannot work, 130 Ctrl-C, 143 SIGTERM, 138
SIGUSR1, 142 the end of --minutes. Nothing here imports PyTorch before names and folders are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from csham._lazy import how_to_install
from csham.errors import first_line_of

__all__ = ["import_failure", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see :func:`csham.cli.commands.main`."""
    try:
        from csham.cli.commands import main as run  # noqa: PLC0415  an extra has what it is made of

        return run(argv)
    except ImportError as err:
        message = import_failure("the command line", err)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while that was imported
        return 130


def import_failure(what: str, err: ImportError) -> str | None:
    """Say what is missing or cannot be loaded, and what to do; None for a part of csham, whose fault it is.

    Args:
        what: Subject of the sentence, which needs it.
        err: From the import.
    """
    if isinstance(err, ModuleNotFoundError) and (missing := how_to_install(what, err)):
        return missing
    if (err.name or "").partition(".")[0] == "csham":
        return None
    package, _, inside = (err.name or "").partition(".")
    problem = first_line_of(err).rstrip(".")
    absent = isinstance(err, ModuleNotFoundError)
    if package and absent and not inside:
        return f"{what} needs {package}, which is not installed. Install it: pip install {package}"
    if package and (absent or problem.startswith("cannot import name")):
        return f"{what} needs another version of {package}: {problem}. Install its newest."
    where = f"{err.path}: " if err.path and err.path not in str(err) else ""
    return (
        f"{what} needs a library that cannot be loaded: {where}{problem}. There is too little "
        "memory for it (ulimit -v shows a limit), or its installation is broken: install it again."
    )
