"""One training run in one run folder: settings, recipes, the loop, metrics, checkpoints.

Start with :func:`csham.training.loop.train`, which takes a :class:`TrainConfig`, and read
:mod:`csham.training.run_folder` for what a run leaves behind. Settings and run folders are read without
importing PyTorch; the names below that need it are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names
from csham.training.config import TrainConfig
from csham.training.recipes import RECIPES

if TYPE_CHECKING:
    from csham.training.evaluation import evaluate
    from csham.training.loop import resume, train

__all__ = ["RECIPES", "TrainConfig", "evaluate", "resume", "train"]

__getattr__ = lazy_names(
    __name__,
    {
        "evaluate": "csham.training.evaluation",
        "resume": "csham.training.loop",
        "train": "csham.training.loop",
    },
)
