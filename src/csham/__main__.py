"""``python -m csham`` is ``csham``."""

from __future__ import annotations

import sys

from csham.cli import main

if __name__ == "__main__":
    sys.exit(main())
