"""Weights of a run that stand behind a number: one choice, read by every command after training.

A run ends with two sets: those of the last epoch, which the headline and every study report, and those of the epoch
that its validation part chose. Nothing here imports PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csham.errors import UserError, unknown_name
from csham.training.run_folder import RunFolder

__all__ = ["CHOICES", "DEFAULT", "RunWeights", "check_choice", "weights_of_run"]

CHOICES = ("last", "best")

# A tenth of a small folder is some twenty images, and the best of thirty looks at twenty images is mostly luck.
DEFAULT = "last"


@dataclass(frozen=True)
class RunWeights:
    """One set of a run's weights.

    Attributes:
        name: One of ``CHOICES``.
        epoch: After which it was, from 1; None if that is not known.
    """

    name: str
    epoch: int | None = None

    def __str__(self) -> str:
        """Say it where a number stands: ``last epoch (30)``, ``chosen (epoch 21)``."""
        if self.name == "last":
            return "last epoch" if self.epoch is None else f"last epoch ({self.epoch})"
        return "chosen by validation" if self.epoch is None else f"chosen (epoch {self.epoch})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as summaries and the metadata of files have it."""
        return {"weights": self.name, "epoch": self.epoch}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunWeights:
        """Read it back from a file that anyone may have written; of before it was said, a run left the best ones."""
        name, epoch = values.get("weights", "best"), values.get("epoch")
        if name not in CHOICES or not (epoch is None or (type(epoch) is int and epoch >= 0)):
            raise UserError(f"weights should be 'last' or 'best' of an epoch, got {ascii((name, epoch))[:80]}.")
        return cls(name, epoch)


def check_choice(name: str | None) -> None:
    """Refuse what is none of ``CHOICES``; None leaves the choice to ``DEFAULT``, or to what there is."""
    if name is not None and name not in CHOICES:
        raise unknown_name("weights", name, CHOICES)


def weights_of_run(folder: RunFolder, name: str) -> RunWeights:
    """Say of which epoch a run's last or best weights are.

    Args:
        folder: The run, finished or not.
        name: One of ``CHOICES``.
    """
    if name == "best":
        chosen = folder.read_summary().get("validation_chosen") if folder.finished else None
        return RunWeights(name, chosen.get("epoch") if isinstance(chosen, dict) else None)
    return RunWeights(name, len(folder.read_metrics()) if (folder.path / "metrics.csv").is_file() else None)
