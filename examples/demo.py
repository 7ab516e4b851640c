"""The demo: a study of one small network, plain, with SE and with CSHAM, on handwritten digits.

It gives the command that a user would give, ``csham compare``. Two seeds and a few epochs show how the parts fit
together, not which attention is better; the report says so itself.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from csham.cli import main

GRID = ["--backbones", "resnet14", "--attentions", "none,se,csham:transfer", "--seeds", "2"]
SETTINGS = ["--recipe", "quick", "--epochs", "2", "--batch-size", "32", "--jobs", "2"]

CONCLUSION = """\
What may be concluded: that it works here. Not which network is better: 2 seeds are too few, and in some 80 steps
attention mostly shows that its gates start half shut, which halves every branch and alone costs several points
(docs/training.md, "Short trainings"). A study of your own images:
csham compare FOLDER --attentions se,csham --seeds 5"""


def demo(folder: Path) -> int:
    """Run the study and return the exit code."""
    words = ["compare", "digits", *GRID, *SETTINGS, "--study", str(folder)]
    print(f"$ csham {shlex.join(words)}", flush=True)
    code = main(words)
    if code == 0:
        print(f"\n{CONCLUSION}")
    return code


if __name__ == "__main__":
    sys.exit(demo(Path(".demo") / time.strftime("%Y%m%d-%H%M%S")))
