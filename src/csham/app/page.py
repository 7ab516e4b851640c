"""The page, laid out with Gradio."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from csham.app.views import GRAD_CAM, choices, plain, show
from csham.errors import UserError
from csham.explain import Explanation, explain_together
from csham.inference import Trained
from csham.inference.transform import UnreadableImageError
from csham.words import printable

__all__ = ["LOOKS", "build_page"]

LOOKS: dict[str, Any] = {
    # The system's own fonts: the default theme would fetch its from elsewhere.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": ".overlay img { image-rendering: pixelated; }",
}

_TOP = 5
_UNUSABLE = "This image cannot be used"
_HOUR = 3600


def build_page(trained: Trained, other: Trained | None = None) -> gr.Blocks:
    """Lay out the page of one network, or of two side by side; nothing is served yet.

    Args:
        trained: The network.
        other: A second one.
    """
    networks = [trained] if other is None else [trained, other]
    shown = choices(networks)
    # What people upload is deleted an hour later, or when the page closes.
    with gr.Blocks(title=f"csham: {trained.label}", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        names = _names(networks)
        gr.Markdown("# " + " and ".join(map(plain, names)))
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
    return [f"{network.label} in {network.path.absolute().name}" for network in networks]


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
        view = show(explanation, choice or GRAD_CAM)
        shown += [view.picture, view.caption, gr.Plot(view.channels, visible=view.channels is not None)]
    return shown
