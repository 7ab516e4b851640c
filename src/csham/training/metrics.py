"""The numbers of a run: every metric is declared here once, and code that writes or shows it reads that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, Literal

import numpy as np

__all__ = [
    "BINS",
    "DECIMALS",
    "METRICS",
    "TOP",
    "Metric",
    "Predictions",
    "StudyColumn",
    "UndefinedError",
    "accuracy_names",
    "in_tables",
    "of_study",
]

TOP = 5
"""Number of answers kept; top-5 accuracy says something where there are more classes."""

BINS = 15
"""Bins of calibration, of equal width, as in Guo et al., arXiv:1706.04599."""


DECIMALS = 4
"""Decimals of a percentage that is kept."""


class UndefinedError(ValueError):
    """A metric has no value for these predictions; the message says why."""


@dataclass(frozen=True)
class StudyColumn:
    """A metric in the tables of a study.

    Attributes:
        name: Its key in tables for programs; empty: it is not in them.
        title: Its head in tables for readers, before the unit.
        help: Meaning in a few words.
        every_run: Also in the table of all runs.
        digits: Decimals for readers.
    """

    name: str = ""
    title: str = ""
    help: str = ""
    every_run: bool = False
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a network's answers to a part of a dataset, and all that is said of it elsewhere.

    An entry in :data:`METRICS` is measured, written to ``summary.json`` and shown by ``csham evaluate``, model cards
    and, with ``study``, the report of a study.

    Attributes:
        name: Its key in ``summary.json``.
        title: Head of its column on a terminal.
        label: Its name where nothing around explains it, without the unit.
        summary: Meaning in a few words.
        compute: The number, from predictions and the number of classes; a share of one where the unit is ``"%"``. It
            may raise :class:`UndefinedError`.
        unit: ``"%"`` or another; empty for a plain number.
        better: Direction of better values; None for what is neither good nor bad.
        above: It says something where there are more classes than this.
        every_epoch: Also in ``metrics.csv``, of every part that is measured after an epoch. Of the training part there
            is only what the training step sums up.
        study: Its column in the tables of a study.
        hub: Its kind in the words of the Hugging Face Hub.
    """

    name: str
    title: str
    label: str
    summary: str
    compute: Callable[[Predictions, int], float]
    unit: str = ""
    better: Literal["higher", "lower"] | None
    above: int = 0
    every_epoch: bool = False
    study: StudyColumn = StudyColumn()
    hub: str = ""

    def measure(self, predictions: Predictions, classes: int) -> float:
        """Return the number in its unit."""
        value = self.compute(predictions, classes)
        if self.unit == "%":
            return _percent(value)
        return value if isinstance(value, int) else float(value)

    def with_unit(self, name: str) -> str:
        """Write a name of it with its unit."""
        return f"{name}, {self.unit}" if self.unit else name


def of_study() -> dict[str, Metric]:
    """Return the metrics that a study's tables show beside top-1, under their names there."""
    return {metric.study.name: metric for metric in METRICS.values() if metric.study.name and metric.name != "top1"}


def in_tables() -> list[Metric]:
    """Return the metrics in the order of tables: first those of which more is better, then less, then the others."""
    return sorted(METRICS.values(), key=lambda metric: ("higher", "lower", None).index(metric.better))


def accuracy_names(classes: int) -> tuple[str, ...]:
    """Name what is measured at every epoch: without top-5 accuracy where it is always 100%."""
    return tuple(metric.name for metric in _measured(classes) if metric.every_epoch)


@dataclass(frozen=True)
class Predictions:
    """Answers of a network for a part of a dataset.

    Attributes:
        indices: Indices of the images in the dataset, (N,).
        labels: Their classes, (N,).
        top: The classes it named, most likely first, (N, 5) or fewer columns with fewer classes.
        losses: Cross-entropy of each image, (N,).
        confidences: Probability of the class named first, (N,).
        distances: Squared distance of each image's probabilities to the truth, 1 for its class and 0 for the others,
            (N,).
        probabilities: Of every class, (N, classes) float32; None where they were not kept.
    """

    indices: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    losses: np.ndarray
    confidences: np.ndarray
    distances: np.ndarray
    probabilities: np.ndarray | None = None

    @cached_property
    def hits(self) -> np.ndarray:
        """True for each of the named classes that is right, (N, 5)."""
        return self.top == self.labels[:, None]

    @cached_property
    def macro(self) -> tuple[float, float, float]:
        """Precision, recall and F1, means over the classes that have images here; a class never named has 0."""
        return _sklearn().precision_recall_fscore_support(
            self.labels, self.top[:, 0], labels=np.unique(self.labels), average="macro", zero_division=0.0
        )[:3]

    def accuracies(self, classes: int) -> dict[str, float]:
        """Return the metrics of every epoch."""
        return {name: METRICS[name].measure(self, classes) for name in accuracy_names(classes)}

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return all metrics by name, and how many of the classes have no images here, ``absent_classes``.

        Where a metric has no value, ``undefined`` says why, by its name.
        """
        numbers: dict[str, Any] = {}
        undefined: dict[str, str] = {}
        for metric in _measured(len(classes)):
            try:
                numbers[metric.name] = metric.measure(self, len(classes))
            except UndefinedError as err:
                undefined[metric.name] = str(err)
        numbers["absent_classes"] = len(classes) - len(np.unique(self.labels))
        return numbers | ({"undefined": undefined} if undefined else {})

    def reliability(self) -> list[dict[str, Any]]:
        """Return how confident the network was and how often right, of the images in each bin of confidence.

        The bins are :data:`BINS`, each without its lower edge; those without images are left out.
        """
        confidences, right = self.confidences.astype(np.float64), self.hits[:, 0].astype(int)
        accuracy, confidence = _sklearn("calibration").calibration_curve(right, confidences, n_bins=BINS)
        edges = np.linspace(0, 1, BINS + 1)
        counts = np.bincount(np.searchsorted(edges[1:-1], confidences), minlength=BINS)  # as scikit-learn divides them
        columns = zip(np.flatnonzero(counts).tolist(), accuracy.tolist(), confidence.tolist(), strict=True)
        return [
            {
                "above": float(edges[bin]),
                "up_to": float(edges[bin + 1]),
                "images": int(counts[bin]),
                "confidence": _percent(mean),
                "accuracy": _percent(share),
            }
            for bin, share, mean in columns
        ]

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
def _sklearn(part: str = "metrics") -> Any:
    # Imported when it is used: it takes seconds, which the first step need not wait for.
    return import_module(f"sklearn.{part}")


def _measured(classes: int) -> Iterable[Metric]:
    return [metric for metric in METRICS.values() if classes > metric.above]


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), DECIMALS)


def _kappa(predictions: Predictions, classes: int) -> float:
    labels, first = predictions.labels, predictions.top[:, 0]
    if len(np.unique([labels, first])) == 1:  # 0 / 0: always giving the only class there is says nothing
        return 0.0
    return _sklearn().cohen_kappa_score(labels, first, labels=range(classes))


def _auc(predictions: Predictions, classes: int) -> float:
    if predictions.probabilities is None:
        raise UndefinedError("the probabilities of so many images and classes are not kept")
    there = np.unique(predictions.labels)
    if len(there) == 1:
        raise UndefinedError("all images are of one class")
    # One against the rest, class by class: scikit-learn's own loop refuses a class that has no images.
    areas = [
        _sklearn().roc_auc_score(predictions.labels == label, predictions.probabilities[:, label]) for label in there
    ]
    return float(np.mean(areas))


def _ece(predictions: Predictions, classes: int) -> float:
    bins = predictions.reliability()
    gaps = [one["images"] * abs(one["accuracy"] - one["confidence"]) / 100 for one in bins]
    return sum(gaps) / len(predictions.labels)


def _brier(predictions: Predictions, classes: int) -> float:
    score = predictions.distances.mean(dtype=np.float64)
    return score / 2 if classes == 2 else score


_ENTRIES = (
    Metric(
        name="loss",
        title="loss",
        label="cross-entropy",
        summary="Cross-entropy of the right class, mean over images.",
        compute=lambda predictions, classes: predictions.losses.mean(dtype=np.float64),
        better="lower",
        every_epoch=True,
    ),
    Metric(
        name="top1",
        title="top-1",
        label="top-1 accuracy",
        summary="Share of the images that are named right (micro accuracy).",
        compute=lambda predictions, classes: predictions.hits[:, 0].mean(),
        unit="%",
        better="higher",
        every_epoch=True,
        study=StudyColumn(
            "top1",
            "top-1",
            "Of the last epoch on the test part: mean over seeds ± standard deviation.",
            every_run=True,
        ),
        hub="accuracy",
    ),
    Metric(
        name="macro_top1",
        title="macro top-1",
        label="macro top-1 accuracy",
        summary="The same share of each class, mean over classes (balanced accuracy).",
        compute=lambda predictions, classes: predictions.macro[1],
        unit="%",
        better="higher",
    ),
    Metric(
        name="top5",
        title="top-5",
        label="top-5 accuracy",
        summary="Share of the images whose class is among the five likeliest; from six classes on.",
        compute=lambda predictions, classes: predictions.hits.any(1).mean(),
        unit="%",
        better="higher",
        above=TOP,
        every_epoch=True,
        study=StudyColumn("top5", "top-5", "Of the last epoch, mean over seeds.", every_run=True),
        hub="accuracy",
    ),
    Metric(
        name="precision",
        title="precision",
        label="precision, macro",
        summary="Of the images that are given a class, the share that are of it; mean over classes.",
        compute=lambda predictions, classes: predictions.macro[0],
        unit="%",
        better="higher",
    ),
    Metric(
        name="recall",
        title="recall",
        label="recall, macro",
        summary="Of the images of a class, the share that are given it; mean over classes, so `macro_top1` again.",
        compute=lambda predictions, classes: predictions.macro[1],
        unit="%",
        better="higher",
        study=StudyColumn("macro_recall", "macro recall", "Every class counted alike."),
    ),
    Metric(
        name="f1",
        title="F1",
        label="F1, macro",
        summary="Harmonic mean of a class's precision and recall; mean over classes.",
        compute=lambda predictions, classes: predictions.macro[2],
        unit="%",
        better="higher",
        study=StudyColumn("macro_f1", "macro F1", "Every class counted alike."),
        hub="f1",
    ),
    Metric(
        name="kappa",
        title="kappa",
        label="Cohen's kappa",
        summary="Agreement with the true classes beyond chance: 0 for guessing, 1 for no error.",
        compute=_kappa,
        better="higher",
    ),
    Metric(
        name="auc",
        title="AUC",
        label="ROC AUC, macro",
        summary="Area under the ROC curve of one class against the rest: how often an image of the class gets more "
        "probability of it than one of another; mean over classes.",
        compute=_auc,
        better="higher",
    ),
    Metric(
        name="brier",
        title="Brier",
        label="Brier score",
        summary="Squared distance of the probabilities to the truth, summed over classes (of two, one counts); mean "
        "over images: 0 is best.",
        compute=_brier,
        better="lower",
    ),
    Metric(
        name="ece",
        title="ECE",
        label="expected calibration error",
        summary="How far the probability of the class named first is from the share that is named right, mean over "
        "images, in 15 bins of equal width.",
        compute=_ece,
        unit="%",
        better="lower",
    ),
    Metric(
        name="images",
        title="images",
        label="test images",
        summary="Images that were asked about.",
        compute=lambda predictions, classes: len(predictions.labels),
        better=None,
    ),
)

METRICS = {metric.name: metric for metric in _ENTRIES}
"""Every metric of a run by its name, in the order of ``summary.json``."""
