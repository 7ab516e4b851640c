"""The page, laid out with Gradio: one map over the image, its numbers in words, the channel weights."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from csham.errors import UserError
from csham.explain import Explanation, explain, explain_together, overlay
from csham.explain.picture import enlarged
from csham.inference import Trained
from csham.inference.transform import UnreadableImageError
from csham.words import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LOOKS", "build_page"]

LOOKS: dict[str, Any] = {
    # The system's own fonts: the default theme would fetch its from elsewhere.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": ".overlay img { image-rendering: pixelated; }",
}

_TOP = 5
_GRAD_CAM = "Grad-CAM"
# Least side of the shown picture, in pixels.
_SIDE = 384
_UNUSABLE = "This image cannot be used"
_HOUR = 3600


def build_page(trained: Trained, other: Trained | None = None) -> gr.Blocks:
    """Lay out the page of one network, or of two side by side; nothing is served yet.

    Args:
        trained: The network.
        other: A second one.
    """
    networks = [trained] if other is None else [trained, other]
    shown = _choices(networks)
    # What people upload is deleted an hour later, or when the page closes.
    with gr.Blocks(title=f"csham: {trained.label}", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        names = _names(networks)
        gr.Markdown("# " + " and ".join(map(_plain, names)))
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                image = gr.Image(
                    sources=["upload", "clipboard"],
                    label="Image",
                    buttons=[],
                    elem_id="image",
                )
                # Gradio would open it, and show what Pillow says. Of a class it would write stubs beside this file.
                image.preprocess = _unopened
                choice = gr.Radio(shown, value=shown[min(1, len(shown) - 1)], label="Show", elem_id="show")
            sides = [_side(name, number) for number, name in enumerate(names)]
        explained = gr.State(time_to_live=_HOUR)
        pictures = [part for side in sides for part in side[1:]]
        answers = [side[0] for side in sides]
        # One image at a time: the networks' hooks are not for many threads.
        image.change(
            partial(_ask, networks), [image, choice], [explained, *answers, *pictures], api_visibility="private"
        )
        choice.change(
            partial(_draw, networks), [choice, explained], pictures, api_visibility="private", show_progress="hidden"
        )
    return page


def _names(networks: Sequence[Trained]) -> list[str]:
    """Return a name for each network; where they are of the same kind, with its folder's."""
    labels = [network.label for network in networks]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{network.label} in {Path(network.origin).absolute().name}" for network in networks]


def _side(name: str, number: int) -> list[gr.components.Component]:
    """Lay out what is said of one network: answer, picture, caption, channel weights."""
    with gr.Column(scale=1, min_width=260, elem_id=f"network-{number}"):
        return [
            gr.Label(num_top_classes=_TOP, label=name),
            gr.Image(
                label=f"Where {name} looks",
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_classes="overlay",
            ),
            gr.Markdown(),
            gr.Plot(show_label=False, visible=False),
        ]


def _unopened(payload: Any) -> tuple[str, str] | None:
    """Give the path of an uploaded file, and the name that it had."""
    if payload is None:
        return None
    if payload.path is None:
        raise gr.Error("An image is uploaded as a file.", title=_UNUSABLE, print_exception=False)
    return payload.path, payload.orig_name or Path(payload.path).name


def _ask(networks: Sequence[Trained], upload: tuple[str, str] | None, choice: str | None) -> list[Any]:
    """Answer one image."""
    if upload is None:
        return [None, *[None] * len(networks), *_draw(networks, choice, None)]
    path, name = upload
    try:
        (explanations,) = explain_together(networks, [path], top=_TOP)
    except UserError as err:
        words = f"{printable(name)}: {err.file.reason}." if isinstance(err, UnreadableImageError) else str(err)
        raise gr.Error(html.escape(words, quote=False), title=_UNUSABLE, print_exception=False) from err
    answers = [dict(explanation.predictions) for explanation in explanations]
    return [explanations, *answers, *_draw(networks, choice, explanations)]


def _draw(networks: Sequence[Trained], choice: str | None, explanations: Sequence[Explanation] | None) -> list[Any]:
    """Return picture, caption and plot of each network."""
    if explanations is None:
        return [None, "", gr.Plot(visible=False)] * len(networks)
    shown: list[Any] = []
    for explanation in explanations:
        view = _show(explanation, choice or _GRAD_CAM)
        shown += [view.picture, view.caption, gr.Plot(view.channels, visible=view.channels is not None)]
    return shown


@dataclass(frozen=True)
class _View:
    """One network's side of the page.

    Attributes:
        picture: (P, P, 3) uint8.
        caption: Meaning of the colours, in Markdown.
        channels: The channel weights as a plot; None where there are none.
    """

    picture: np.ndarray
    caption: str
    channels: Figure | None


def _choices(networks: Sequence[Trained]) -> list[str]:
    """Return what can be shown of these networks: Grad-CAM, and every stage that one of them attends in."""
    labels = [_GRAD_CAM]
    for trained in networks:
        size = trained.info.image_size
        for explanation in explain(trained, [np.zeros((size, size, 3), np.uint8)]):
            labels += [label for label in explanation.stages if label not in labels]
    return labels


def _show(explanation: Explanation, choice: str) -> _View:
    """Draw one of the choices.

    Args:
        explanation: Of the image.
        choice: :data:`_GRAD_CAM` or the label of a stage.
    """
    if choice == _GRAD_CAM:
        name = explanation.classes[explanation.target]
        caption = f"What speaks for **{_plain(name)}** at the output of `{explanation.gradcam_layer}`: light is more."
        return _View(_over(explanation, explanation.gradcam, (0.0, 1.0)), caption, None)
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
    return _View(picture, caption, None if channel is None else _bars(*channel))


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


def _plain(name: str) -> str:
    """Return a name that Markdown leaves as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+-.!|~" else letter for letter in name)
