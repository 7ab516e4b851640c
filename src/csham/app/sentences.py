"""Plain words for what is seen: the answer, how sure it is, and where attention was strong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csham.errors import any_of
from csham.explain import Explanation
from csham.inference import Trained

__all__ = ["agreement", "differences", "in_markdown", "in_words", "where"]

_SURE, _FAIRLY_SURE = 0.9, 0.6
# Weights that differ by less than this part of the largest let all places pass alike.
_FLAT = 0.02

# By thirds of height and width; None where they are spread over it.
_PLACES = {
    (0, 0): "at the upper left",
    (0, 1): "at the top",
    (0, 2): "at the upper right",
    (0, None): "along the top",
    (1, 0): "at the left",
    (1, 1): "in the middle",
    (1, 2): "at the right",
    (1, None): "across the middle",
    (2, 0): "at the lower left",
    (2, 1): "at the bottom",
    (2, 2): "at the lower right",
    (2, None): "along the bottom",
    (None, 0): "along the left",
    (None, 1): "down the middle",
    (None, 2): "along the right",
}


def in_words(explanation: Explanation, stage: str | None, answer: str | None = None) -> str:
    """Return one sentence, in Markdown, on what a network said of an image and where it looked.

    Args:
        explanation: Of the image.
        stage: Label of the stage that is spoken of; None where no stage has spatial weights.
        answer: Class that the image is of, if that is known.
    """
    (name, share), *_ = explanation.predictions
    shown = round(share, 2)  # so that 90% is always the same word
    sure = "sure" if shown >= _SURE else "fairly sure" if shown >= _FAIRLY_SURE else "not sure"
    verdict = ""
    if answer == name:
        verdict = ", which is right"
    elif answer is not None:
        unknown = "" if answer in explanation.classes else ", a class that it does not know"
        verdict = f", which is wrong: it is **{in_markdown(answer)}**{unknown}"
    return f"It says **{in_markdown(name)}** ({shown:.0%}, {sure}){verdict}; {_attention(explanation, stage)}."


def agreement(names: Sequence[str], explanations: Sequence[Explanation]) -> str:
    """Return one sentence, in Markdown, on whether several networks give the same answer."""
    answers: dict[str, list[str]] = {}
    for name, explanation in zip(names, explanations, strict=True):
        answers.setdefault(explanation.classes[explanation.predicted], []).append(in_markdown(name))
    if len(answers) == 1:
        return f"{'Both' if len(names) == 2 else f'All {len(names)}'} say **{in_markdown(*answers)}**."
    said = [
        f"{any_of(who, 'and')} {'says' if len(who) == 1 else 'say'} **{in_markdown(answer)}**"
        for answer, who in answers.items()
    ]
    return f"They differ: {'; '.join(said)}."


def differences(names: Sequence[str], networks: Sequence[Trained]) -> list[str]:
    """Return sentences, in Markdown, on what makes the answers of several networks hard to compare."""
    named = [in_markdown(name) for name in names]
    said = []
    classes = [set(network.classes) for network in networks]
    if any(one != classes[0] for one in classes):
        common = len(set.intersection(*classes))
        each = any_of([f"{name} {len(one)}" for name, one in zip(named, classes, strict=True)], "and")
        said.append(f"They do not know the same classes: {each}, {common or 'none'} in common.")
    sizes = [network.info.image_size for network in networks]
    if len(set(sizes)) > 1:
        each = any_of([f"{name} {size} x {size} pixels" for name, size in zip(named, sizes, strict=True)], "and")
        said.append(f"Each is given the image in its own size: {each}.")
    return said


def where(weights: np.ndarray) -> str | None:
    """Say where the larger weights of a map are, such as "at the upper left"; None where all are much the same.

    Args:
        weights: (h, w).
    """
    low, high = float(weights.min()), float(weights.max())
    if high - low <= _FLAT * max(abs(low), abs(high)):
        return None
    mass = np.clip(weights - (low + high) / 2, 0, None)
    mass = mass / mass.sum()
    rows, columns = (_band(mass.sum(axis)) for axis in (1, 0))
    if rows is None and columns is None:
        return "around the edges" if _inner(mass) < 0.1 else "in several places"
    return _PLACES[rows, columns]


def in_markdown(name: str) -> str:
    """Return a name that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-.!|~&$" else letter for letter in name)


def _attention(explanation: Explanation, stage: str | None) -> str:
    if explanation.no_maps is not None:
        return in_markdown(explanation.no_maps)
    maps = explanation.stages[stage].spatial if stage is not None else None
    if maps is None:
        return "its attention weighs channels, not places"
    place = where(maps[1])
    return f"in `{stage}` its attention " + (f"was strongest {place}" if place else "hardly told places apart")


def _band(mass: np.ndarray) -> int | None:
    """Return in which third of its axis a distribution is, from 0; None where it is spread over the axis."""
    places = (np.arange(len(mass)) + 0.5) / len(mass)
    centre = float((mass * places).sum())
    # Evenly spread it is 0.29.
    return None if float((mass * (places - centre) ** 2).sum()) ** 0.5 > 0.24 else min(int(3 * centre), 2)


def _inner(mass: np.ndarray) -> float:
    """Return how much of a map lies in its inner half by height and width."""
    h, w = mass.shape
    return float(mass[h // 4 : h - h // 4, w // 4 : w - w // 4].sum())
