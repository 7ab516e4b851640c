"""Files of an evaluation: how far confidence is right, the most confident errors, what is taken for what."""

from __future__ import annotations

import json
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csham.files import csv_text, write_atomically
from csham.fonts import families, fitted
from csham.report.drawing import COLOURS, INK, MUTED, drawing, png_bytes
from csham.training.metrics import BINS
from csham.training.outputs import check_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from csham.training.evaluation import Evaluation

__all__ = ["SHOWN_ERRORS", "draw_confusion", "draw_errors", "draw_reliability", "evaluation_json", "write_evaluation"]

SHOWN_ERRORS = 24
"""So many of the most confident errors are drawn; ``errors.csv`` has all."""

_COLUMNS = 6
_PANEL, _SPACE, _HEAD, _LINES = 1.5, 0.15, 0.38, 0.48  # inches
_FEW, _PALE = 10, 0.35  # of fewer images a share says little
_NUMBERED, _NAMED = 12, 40  # up to so many classes a confusion matrix has counts, and names
_BAR, _GAP = COLOURS[0][0], COLOURS[1][0]


def write_evaluation(folder: Path, found: Evaluation) -> list[Path]:
    """Write what an evaluation found, as files for programs and as pictures.

    Args:
        folder: Made if it is not there; files in it are replaced. A run's own is refused, as is one among the images.
        found: Result of :func:`csham.training.evaluate`.

    Returns:
        The files.

    Raises:
        UserError: The folder is one of these, or cannot be written into.
    """
    check_folder("write_evaluation: folder", folder, data=found.summary.get("data"))
    folder.mkdir(parents=True, exist_ok=True)
    errors, reliability = found.errors(), found.predictions.reliability()
    matrix = ([name, *counts] for name, counts in zip(found.classes, found.confusion.tolist(), strict=True))
    text = json.dumps(evaluation_json(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    contents = {"evaluation.json": text.encode("utf-8", "backslashreplace")}
    for name, header, rows in (
        ("per_class", found.per_class[0], (row.values() for row in found.per_class)),
        ("confusion", ["true class", *found.classes], matrix),
        ("reliability", reliability[0], (row.values() for row in reliability)),
        ("errors", _ERROR_COLUMNS, ([row[name] for name in _ERROR_COLUMNS] for row in errors)),
    ):
        contents[f"{name}.csv"] = csv_text(header, rows).encode("utf-8", "surrogateescape")
    with drawing():
        figures = {"confusion.png": draw_confusion(found), "reliability.png": draw_reliability(found)}
        if errors:
            figures["errors.png"] = draw_errors(found)
        contents |= {name: png_bytes(figure) for name, figure in figures.items()}
    for name, content in contents.items():
        write_atomically(folder / name, methodcaller("write", content))
    if not errors:
        (folder / "errors.png").unlink(missing_ok=True)
    return [folder / name for name in contents]


def evaluation_json(found: Evaluation) -> dict[str, Any]:
    """Return what an evaluation found, ready for JSON, with the first :data:`SHOWN_ERRORS` errors."""
    return {
        **found.summary,
        "classes": found.classes,
        "per_class": found.per_class,
        "confusion": found.confusion.tolist(),
        "reliability": found.predictions.reliability(),
        "errors": [{name: row[name] for name in _ERROR_COLUMNS} for row in found.errors()[:SHOWN_ERRORS]],
    }


_ERROR_COLUMNS = ("image", "true", "given", "probability", "probability_of_true")


def draw_reliability(found: Evaluation) -> Figure:
    """Draw how often the network is right where it is so confident, and how many images that are."""
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second
    from matplotlib.patches import Patch  # noqa: PLC0415

    bins = found.predictions.reliability()
    middles = np.array([50 * (one["above"] + one["up_to"]) for one in bins])
    accuracy, confidence, images = (
        np.array([one[key] for one in bins]) for key in ("accuracy", "confidence", "images")
    )
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 100 / BINS
    right = above.bar(middles, accuracy, width, color=_BAR, edgecolor="white", linewidth=0.6)
    gap = above.bar(
        middles,
        confidence - accuracy,
        width,
        bottom=accuracy,
        color="none",
        edgecolor=_GAP,
        hatch="////",
        linewidth=0.6,
    )
    for bar in (bar for bar, count in zip(right, images, strict=True) if count < _FEW):
        bar.set_alpha(_PALE)
    (ideal,) = above.plot((0, 100), (0, 100), color=INK, linestyle=(0, (4, 3)), linewidth=1)
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="named right, %")
    pale = Patch(color=_BAR, alpha=_PALE, linewidth=0)
    words = ("named right", f"of fewer than {_FEW} images", "gap to the mean confidence", "as often as it says")
    figure.legend(handles=[Patch(color=_BAR), pale, gap, ideal], labels=words, loc="outside lower center", ncols=2)
    above.set_title(f"ECE {found.summary['ece']:.2f}%, top-1 {found.summary['top1']:.2f}%")
    below.bar(middles, images, width, color=MUTED, edgecolor="white", linewidth=0.6)
    below.set(xlabel="confidence: probability of the class named first, %", ylabel="images")
    below.margins(y=0.1)
    return figure


def draw_errors(found: Evaluation) -> Figure:
    """Draw the most confident errors: each image as the network saw it, what it was given, and its class."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    errors = found.errors()
    shown = errors[:SHOWN_ERRORS]
    columns = min(_COLUMNS, max(len(shown), 3))
    rows = -(-len(shown) // columns)
    width, height = columns * (_PANEL + _SPACE) + _SPACE, _HEAD + rows * (_PANEL + _LINES)
    figure = Figure(figsize=(width, height))
    which = f"{len(shown)} most confident of " if len(errors) > len(shown) else ""
    title = f"{which}{len(errors):,} errors in {len(found.predictions.labels):,} images"
    figure.text(_SPACE / width, 1 - 0.08 / height, title, va="top", fontsize=11, fontweight="bold")
    for place, error in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = _SPACE + column * (_PANEL + _SPACE), _HEAD + row * (_PANEL + _LINES)
        axes = figure.add_axes((left / width, 1 - (top + _PANEL) / height, _PANEL / width, _PANEL / height))
        axes.imshow(_seen(found, error["row"]), interpolation="nearest")
        axes.set_axis_off()
        for line, (word, share, colour) in enumerate(
            (("given", "probability", _GAP), ("true", "probability_of_true", INK))
        ):
            # The name last: written from right to left, it would take what follows to its other side.
            words = f"{word}, {error[share]:.0%}: {fitted(error[word], _PANEL - 0.8)}"
            below = 1 - (top + _PANEL + 0.05 + 0.15 * line) / height
            look: dict[str, Any] = {"fontsize": 7.5, "color": colour, "parse_math": False}  # names may have $ in them
            figure.text(left / width, below, words, va="top", family=families(words), **look)
    return figure


def draw_confusion(found: Evaluation) -> Figure:
    """Draw the share of each class that was given each class."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    counts, classes = found.confusion, found.classes
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(classes) <= _NAMED
    side = 1.5 + max(3.0, min(0.32 * len(classes), 9.0))
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(picture, ax=axes, label="share of the true class, %", shrink=0.8)
    axes.set(xlabel="given", ylabel="true")
    if named:
        labels = [fitted(name, 1.3, 8) for name in classes]
        axes.set_xticks(range(len(classes)), labels=labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(classes)), labels=labels, fontsize=8)
    else:
        axes.set_xlabel("given: number of the class, from 0, in the order of confusion.csv")
    for row, column in np.argwhere(counts) if len(classes) <= _NUMBERED else ():
        ink = "white" if shares[row, column] > 55 else INK
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def _seen(found: Evaluation, row: int) -> np.ndarray:
    """Return the centre square of an image, which the network saw."""
    pixels, S = found.dataset.images[row], found.dataset.image_size
    edge = (len(pixels) - S) // 2
    return np.asarray(pixels[edge : edge + S, edge : edge + S])
