"""Views of an explanation on the page: one map over the image, its numbers in words, the channel weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from csham.explain import Explanation, explain, overlay
from csham.explain.overlays import enlarged
from csham.inference import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["GRAD_CAM", "View", "choices", "plain", "show"]

GRAD_CAM = "Grad-CAM"
# Least side of the shown picture, in pixels.
_SIDE = 384


@dataclass(frozen=True)
class View:
    """One network's side of the page.

    Attributes:
        picture: (P, P, 3) uint8.
        caption: Meaning of the colours, in Markdown.
        channels: The channel weights as a plot; None where there are none.
    """

    picture: np.ndarray
    caption: str
    channels: Figure | None


def choices(networks: Sequence[Trained]) -> list[str]:
    """Return what can be shown of these networks: Grad-CAM, and every stage that one of them attends in."""
    found = [GRAD_CAM]
    for trained in networks:
        size = trained.info.image_size
        for explanation in explain(trained, [np.zeros((size, size, 3), np.uint8)]):
            found += [label for label in explanation.stages if label not in found]
    return found


def show(explanation: Explanation, choice: str) -> View:
    """Draw one of :func:`choices`.

    Args:
        explanation: Of the image.
        choice: :data:`GRAD_CAM` or the label of a stage.
    """
    if choice == GRAD_CAM:
        name = explanation.classes[explanation.target]
        caption = f"What speaks for **{plain(name)}** at the output of `{explanation.gradcam_layer}`: light is more."
        return View(_over(explanation, explanation.gradcam, (0.0, 1.0)), caption, None)
    stage = explanation.stages.get(choice)
    spatial = stage.spatial if stage else None
    channel = stage.channel if stage else None
    if spatial is None:
        picture = enlarged(explanation.pixels, _SIDE)
        reason = f"{explanation.no_maps}, so Grad-CAM alone can be shown" if explanation.no_maps else None
        caption = (
            f"No spatial weights here: {reason or f'`{choice}` weighs channels alone, or is not in this network'}."
        )
    else:
        point, weights = spatial
        limits = float(weights.min()), float(weights.max())
        picture = _over(explanation, weights, limits)
        caption = f"Spatial weights at `{point}`: {limits[0]:.3g} (dark) to {limits[1]:.3g} (light)."
    return View(picture, caption, None if channel is None else _bars(*channel))


def _over(explanation: Explanation, weights: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return overlay(explanation.pixels, weights, limits, side=_SIDE)


def _bars(point: str, weights: np.ndarray) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes a second

    figure = Figure(figsize=(5, 2.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(np.sort(weights)[::-1], color="#33638d")
    axes.set(xlabel="channels, by weight", ylabel="weight", title=f"Channel weights at {point}")
    axes.title.set_fontsize("medium")
    return figure


def plain(name: str) -> str:
    """Return a name that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-.!|~" else letter for letter in name)
