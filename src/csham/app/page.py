"""The page, laid out with Gradio: an image, and what each network says of it, in words, a map and weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from csham.app.desk import EMPTY, TOP, Desk, unopened
from csham.app.sentences import differences, in_markdown
from csham.app.views import MOST_TO_SEE, choices
from csham.inference import Trained

__all__ = ["LOOKS", "build_page"]

LOOKS: dict[str, Any] = {
    # The system's own fonts: the default theme would fetch its from elsewhere.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": """
        .overlay img, #image img, #examples img { image-rendering: pixelated; }
        .beside h2, #heading h1 { overflow-wrap: anywhere; }
        .beside h2 { font-size: 1.1em; }
        /* So that pictures side by side begin at the same height. */
        .beside .prose.said { min-height: 4.5em; }
        #examples .grid-wrap { height: auto; min-height: 0; max-height: none; }
        #examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); }
    """,
}

_HOUR = 3600
# What readers of a screen are told, for which Gradio's components have no settings: what changes, and names.
_ALOUD = """() => {
    document.querySelectorAll('.block.said').forEach(block => block.setAttribute('aria-live', 'polite'));
    document.querySelectorAll('#show').forEach(choice => choice.setAttribute('aria-label', 'Show'));
    document.querySelectorAll('#examples button').forEach(
        (example, number) => example.setAttribute('aria-label', `Example ${number + 1}: ${example.innerText.trim()}`)
    );
}"""


def build_page(networks: Sequence[Trained], *, examples: bool = True) -> gr.Blocks:
    """Lay out the page of one network, or of several side by side; nothing is served yet.

    Args:
        networks: At least one.
        examples: True to open with images of the runs' data.
    """
    desk = Desk(networks, with_examples=examples)
    title = " and ".join(dict.fromkeys(network.label for network in networks))
    alone = len(networks) == 1
    heading = in_markdown(title) if alone else f"{len(networks)} networks, one image"
    # What people upload is deleted an hour later, or when the page closes.
    settings: dict[str, Any] = {"analytics_enabled": False, "delete_cache": (_HOUR, _HOUR), "fill_width": not alone}
    with gr.Blocks(title=f"csham: {title}", **settings) as page:
        gr.Markdown("\n\n".join([f"# {heading}", *differences(desk.names, networks)]), elem_id="heading")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                image = _image(desk)
                note = gr.Markdown("Looking for examples ...", elem_classes="said")
                gallery = _gallery()
            with gr.Column(scale=min(len(networks), 3), min_width=280):
                choice = gr.Radio(choices(networks), value=MOST_TO_SEE, label="Show", elem_id="show")
                together = gr.Markdown(visible=not alone, elem_id="together", elem_classes="said")
                with gr.Row():
                    names = [None] if alone else desk.names
                    sides = [_side(name, number) for number, name in enumerate(names)]
        asked = gr.State(time_to_live=_HOUR)
        drawn = [part for side in sides for part in side[2:]]
        said = [asked, together, *(part for side in sides for part in side[:2]), *drawn]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # One at a time, since hooks are not for many threads. Of an image that is pasted other events come too early.
        image.change(
            desk.answer,
            [image, choice],
            [*said, gallery],
            concurrency_limit=1,
            show_progress_on=[part for side in sides for part in (side[0], side[2])],
            api_visibility="private",
        )
        choice.change(desk.draw, [choice, asked], drawn, **hidden)
        gallery.select(desk.choose, None, image, **hidden)
        opened = page.load(desk.open, None, [gallery, note], api_visibility="private")
        opened.then(desk.first, image, image, **hidden)
        opened.then(None, js=_ALOUD, api_visibility="private")
    return page


def _image(desk: Desk) -> gr.Image:
    image = gr.Image(
        sources=["upload", "clipboard"],
        label="Image",
        show_label=False,
        height=260,
        buttons=[],
        elem_id="image",
        alt_text="The image that is asked about",
    )
    # Gradio would open it, and show what Pillow says. Of a class it would write stubs beside this file.
    image.preprocess = unopened
    image.postprocess = partial(desk.show, image.postprocess)
    return image


def _gallery() -> gr.Gallery:
    return gr.Gallery(
        label="Examples",
        show_label=False,
        columns=3,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def _side(name: str | None, number: int) -> list[gr.components.Component]:
    """Lay out what is said of one network: a sentence, the first answers, the picture, its caption, channel weights."""
    with gr.Column(scale=1, min_width=280, elem_id=f"network-{number}", elem_classes="beside" if name else None):
        if name is not None:
            gr.Markdown(f"## {in_markdown(name)}")
        return [
            gr.Markdown(EMPTY, elem_classes="said"),
            gr.Label(num_top_classes=TOP, label="Answers", show_label=False, show_heading=False),
            gr.Image(
                label=f"Where {name or 'it'} looks",
                show_label=False,
                interactive=False,
                format="png",
                buttons=["download", "fullscreen"],
                elem_classes="overlay",
            ),
            gr.Markdown(),
            # An image, since a plot of Gradio's has no words for who does not see it.
            gr.Image(
                label="Channel weights", show_label=False, interactive=False, format="png", buttons=[], visible=False
            ),
        ]
