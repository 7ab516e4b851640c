"""Views of an explanation: one map over the image, what its colours mean, and the weights of the channels."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from csham.app.sentences import in_markdown, where
from csham.explain import Explanation, explain, overlay
from csham.explain.picture import enlarged, picture_bytes
from csham.inference import Trained

__all__ = ["GRAD_CAM", "MOST_TO_SEE", "Channels", "View", "choices", "most_to_see", "views"]

MOST_TO_SEE, GRAD_CAM = "Most to see", "Grad-CAM"

Limits = tuple[float, float]

# Least side of the shown picture, in pixels.
_SIDE = 384
# Told from a dark page and from a light one.
_INK, _LINE = "#808080", "#4a90c2"


class Channels(NamedTuple):
    """Plot of the channel weights of one point.

    Attributes:
        picture: (h, w, 4) uint8, transparent.
        alt: The same in words.
    """

    picture: np.ndarray
    alt: str


@dataclass(frozen=True)
class View:
    """One network's picture.

    Attributes:
        picture: (P, P, 3) uint8.
        alt: The same in words, for who does not see it.
        caption: Meaning of the colours, in Markdown.
        channels: The channel weights; None where there are none.
    """

    picture: np.ndarray
    alt: str
    caption: str
    channels: Channels | None = None


def choices(networks: Sequence[Trained]) -> list[str]:
    """Return what can be shown of these networks: the choice itself, Grad-CAM, and every stage that one attends in."""
    labels = [MOST_TO_SEE, GRAD_CAM]
    for trained in networks:
        size = trained.info.image_size
        for explanation in explain(trained, [np.zeros((size, size, 3), np.uint8)]):
            labels += [label for label in explanation.stages if label not in labels]
    return labels


def most_to_see(explanations: Sequence[Explanation]) -> list[str | None]:
    """Choose the stage of each network whose spatial weights are spread most over the image.

    Networks with the same stages get the same, that of the largest spreads together, so that they can be compared.

    Returns:
        Label of a stage for each explanation; None where no stage has spatial weights.
    """
    spreads = [_spreads(explanation) for explanation in explanations]
    together: dict[tuple[str, ...], dict[str, float]] = {}
    for one in spreads:
        total = together.setdefault(tuple(one), dict.fromkeys(one, 0.0))
        for label, spread in one.items():
            total[label] += spread
    totals = [together[tuple(one)] for one in spreads]
    return [max(total, key=total.__getitem__) if total else None for total in totals]


def views(explanations: Sequence[Explanation], choice: str) -> list[View]:
    """Draw one choice for each network.

    Spatial weights of the same attention at the same stage have the same colours: they scale values by the same rule.
    Those of different attentions are not of one kind, and have colours of their own.

    Args:
        explanations: Of one image.
        choice: One of :func:`choices`.
    """
    if choice == MOST_TO_SEE:
        shown = [label or GRAD_CAM for label in most_to_see(explanations)]
    else:
        shown = [choice] * len(explanations)
    maps: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for explanation, label in zip(explanations, shown, strict=True):
        stage = explanation.stages.get(label)
        if stage is not None and stage.spatial is not None:
            maps[explanation.attention, label].append(stage.spatial[1])
    return [_view(explanation, label, maps) for explanation, label in zip(explanations, shown, strict=True)]


def _spreads(explanation: Explanation) -> dict[str, float]:
    """Return the standard deviation of each stage's spatial weights."""
    return {label: float(stage.spatial[1].std()) for label, stage in explanation.stages.items() if stage.spatial}


def _view(explanation: Explanation, label: str, maps: Mapping[tuple[str, str], Sequence[np.ndarray]]) -> View:
    if label == GRAD_CAM:
        return _grad_cam(explanation)
    stage = explanation.stages.get(label)
    channels = None if stage is None or stage.channel is None else _bars(*stage.channel)
    if stage is None or stage.spatial is None:
        reason = f"`{label}` weighs channels alone" if channels else f"`{label}` is not in this network"
        reason = f"{in_markdown(explanation.no_maps)}" if explanation.no_maps else reason
        picture = enlarged(explanation.pixels, _SIDE)
        return View(picture, "The image, with no map over it", f"No spatial weights here: {reason}.", channels)
    point, weights = stage.spatial
    group = maps[explanation.attention, label]
    limits = min(float(one.min()) for one in group), max(float(one.max()) for one in group)
    low, high = f"{limits[0]:.3g} (dark)", f"{limits[1]:.3g} (light)"
    if len(group) == 1:
        values = f"{low} to {high}"
    else:
        values = f"{weights.min():.3g} to {weights.max():.3g}, in the same colours as beside it, {low} to {high}"
    caption = f"Spatial weights at `{point}`: {values}."
    place = where(weights)
    alt = f"Spatial weights of {label} over the image, {f'largest {place}' if place else 'much the same everywhere'}"
    return View(_over(explanation, weights, limits), alt, caption, channels)


def _grad_cam(explanation: Explanation) -> View:
    name, place = explanation.classes[explanation.target], where(explanation.gradcam)
    reason = f"There is nothing else to see: {in_markdown(explanation.no_maps)}. " if explanation.no_maps else ""
    caption = (
        f"What speaks for **{in_markdown(name)}** at the output of `{explanation.gradcam_layer}`, from nothing (dark) "
        f"to the most in this image (light). {reason}"
    )
    alt = f"Grad-CAM of {name} over the image, {f'largest {place}' if place else 'the same everywhere'}"
    return View(_over(explanation, explanation.gradcam, (0.0, 1.0)), alt, caption.rstrip())


def _over(explanation: Explanation, weights: np.ndarray, limits: Limits) -> np.ndarray:
    return overlay(explanation.pixels, weights, limits, side=_SIDE)


def _bars(point: str, weights: np.ndarray) -> Channels:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second

    figure = Figure(figsize=(5, 2.2), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.plot(np.sort(weights)[::-1], color=_LINE)
    axes.set_title(f"Channel weights at {point}", color=_INK, fontsize="medium")
    axes.set_xlabel("channels, by weight", color=_INK)
    axes.set_ylabel("weight", color=_INK)
    axes.tick_params(colors=_INK)
    axes.spines[:].set_color(_INK)
    alt = f"Channel weights at {point}, {len(weights)} from {weights.max():.3g} down to {weights.min():.3g}"
    return Channels(np.array(Image.open(io.BytesIO(picture_bytes(figure)))), alt)
