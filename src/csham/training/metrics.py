"""The numbers of a run: top-k while it goes, and everything a table of results needs at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

__all__ = ["TOP", "Predictions", "accuracy_names"]

TOP = 5
"""How many answers are kept; top-5 accuracy says something where there are more classes."""


def accuracy_names(classes: int) -> tuple[str, ...]:
    """Name what is measured at every epoch: without top-5 accuracy where it is always 100%."""
    return ("loss", "top1", "top5") if classes > TOP else ("loss", "top1")


@dataclass(frozen=True)
class Predictions:
    """What a network said about a part of a dataset.

    Attributes:
        indices: Which images of the dataset, (N,).
        labels: Their classes, (N,).
        top: The classes it named, most likely first, (N, 5) or fewer columns with fewer classes.
        losses: Cross-entropy of each image, (N,).
    """

    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    losses: np.ndarray

    def accuracies(self, classes: int) -> dict[str, float]:
        """Return ``loss`` and, in percent, ``top1`` and, of more than five classes, ``top5``."""
        hits = self.top == self.labels[:, None]
        found = {
            "loss": float(self.losses.mean(dtype=np.float64)),
            "top1": _percent(hits[:, :1].any(1).mean()),
            "top5": _percent(hits.any(1).mean()),
        }
        return {name: found[name] for name in accuracy_names(classes)}

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return micro and macro accuracy, macro precision, recall and F1 in percent, and Cohen's kappa.

        ``top1`` counts every image alike (micro accuracy); ``macro_top1`` counts every class alike: the mean over
        classes of the share of their images that were named right, also called balanced accuracy and macro recall.
        Macro averages are over the classes that have images here; ``absent_classes`` says how many have none. A class
        that was never named has precision 0.
        """
        first = self.top[:, 0]
        present = np.unique(self.labels)
        precision, recall, f1, _ = _sklearn().precision_recall_fscore_support(
            self.labels, first, labels=present, average="macro", zero_division=0.0
        )
        loss, top1, *top5 = self.accuracies(len(classes)).values()
        return {
            "loss": loss,
            "top1": top1,
            "macro_top1": _percent(recall),
            **({"top5": top5[0]} if top5 else {}),
            "precision": _percent(precision),
            "recall": _percent(recall),
            "f1": _percent(f1),
            "kappa": float(_sklearn().cohen_kappa_score(self.labels, first, labels=range(len(classes)))),
            "images": len(self.labels),
            "absent_classes": len(classes) - len(present),
        }

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Return precision, recall and F1 in percent and the number of images, of each class.

        Recall and F1 of a class without images are None.
        """
        columns = _sklearn().precision_recall_fscore_support(
            self.labels, self.top[:, 0], labels=range(len(classes)), zero_division=0.0
        )
        return [
            {
                "class": name,
                "precision": _percent(precision),
                "recall": _percent(recall) if support else None,
                "f1": _percent(f1) if support else None,
                "images": int(support),
            }
            for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
        ]

    def confusion(self, classes: Sequence[str]) -> np.ndarray:
        """Return how many images of each class (row) were given each class (column)."""
        return _sklearn().confusion_matrix(self.labels, self.top[:, 0], labels=range(len(classes)))


@cache
def _sklearn() -> Any:
    # Imported when it is used: it takes seconds, which the first step need not wait for.
    import sklearn.metrics  # noqa: PLC0415

    return sklearn.metrics


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), 4)
