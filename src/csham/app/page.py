"""The page, laid out with Gradio: an image, and what each network says of it, in words, a map and weights."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import gradio as gr

from csham.app.examples import Examples, find_examples
from csham.app.names import short_names
from csham.app.sentences import agreement, differences, in_markdown, in_words
from csham.app.views import MOST_TO_SEE, choices, most_to_see, views
from csham.errors import UserError
from csham.explain import Explanation, explain_together
from csham.inference import Trained
from csham.inference.transform import ImageLike, UnreadableImageError
from csham.words import printable

__all__ = ["LOOKS", "build_page"]

LOOKS: dict[str, Any] = {
    # The system's own fonts: the default theme would fetch its from elsewhere.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "css": """
        .overlay img, #image img, #examples img { image-rendering: pixelated; }
        .network h2, #heading h1 { overflow-wrap: anywhere; }
        .network h2 { font-size: 1.1em; }
        /* So that pictures side by side begin at the same height. */
        .network .prose.said { min-height: 4.5em; }
        #examples .grid-wrap { height: auto; min-height: 0; max-height: none; }
        #examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)); }
    """,
}

_TOP = 5
_UNUSABLE = "This image cannot be used"
_HOUR = 3600
_EMPTY = "Drop an image, or paste one."
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
    desk = _Desk(networks, with_examples=examples)
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
        # Their outputs take turns at the networks: hooks are not for many threads.
        turns: dict[str, Any] = {
            "concurrency_id": "networks",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress_on": [part for side in sides for part in (side[0], side[2])],
        }
        # Of an image that is pasted the other events are told before it is there.
        image.change(desk.answer_upload, [image, choice, asked], [*said, gallery], **turns)
        gallery.select(desk.answer_example, [choice], [*said, image], **turns)
        choice.change(desk.draw, [choice, asked], drawn, show_progress="hidden", api_visibility="private")
        opened = page.load(desk.open, None, [gallery, note], api_visibility="private")
        opened.then(desk.answer_first, [choice, asked], [*said, image, gallery], **turns)
        opened.then(None, js=_ALOUD, api_visibility="private")
    return page


def _image(desk: _Desk) -> gr.Image:
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
    image.preprocess = _unopened
    image.postprocess = partial(desk.show_example, image.postprocess)
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
    with gr.Column(scale=1, min_width=280, elem_id=f"network-{number}", elem_classes="network"):
        if name is not None:
            gr.Markdown(f"## {in_markdown(name)}")
        return [
            gr.Markdown(_EMPTY, elem_classes="said"),
            gr.Label(num_top_classes=_TOP, label="Answers", show_label=False, show_heading=False),
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


def _unopened(payload: Any) -> tuple[str, str] | None:
    """Give the path of an uploaded file, and the name that it had."""
    if payload is None:
        return None
    if payload.path is None:
        raise gr.Error("An image is uploaded as a file.", title=_UNUSABLE, print_exception=False)
    return payload.path, payload.orig_name or Path(payload.path).name


class _Asked(NamedTuple):
    """What a page shows the answers to.

    Attributes:
        explanations: Of each network.
        example: Number of the example; None for an image that somebody brought.
    """

    explanations: Sequence[Explanation]
    example: int | None = None


class _Desk:
    """What answers a page: the networks, their examples, and the answers to these, each computed once."""

    def __init__(self, networks: Sequence[Trained], *, with_examples: bool) -> None:
        self.networks = networks
        self._with_examples = with_examples
        self.names = short_names(networks)
        self._looked = Lock()
        self._answered: dict[int, _Asked] = {}
        self._shown: dict[str, int] = {}

    @cached_property
    def examples(self) -> Examples:
        """Images to begin with, looked for when the first page opens."""
        return find_examples(self.networks, self.names) if self._with_examples else Examples([], "")

    def open(self) -> list[Any]:
        """Show the examples."""
        with self._looked:
            examples = self.examples
        pictures = [(example.picture, example.answer or example.name) for example in examples.images]
        return [gr.Gallery(pictures, visible=bool(pictures)), examples.note]

    def show_example(self, show: Callable[[Any], Any], number: int | None) -> Any:
        """Show an example as the image; the page tells of it as of one that somebody brought."""
        shown = show(None if number is None else self.examples.images[number].picture)
        if number is not None:
            self._shown[shown.path] = number
        return shown

    def answer_first(self, choice: str | None, asked: _Asked | None) -> list[Any]:
        """Answer the first example, unless somebody was faster than the page and asked something."""
        if asked is not None or not self.examples.images:
            return [gr.skip()] * (2 + 5 * len(self.networks) + 2)
        return [*self._said(choice, self._example(0)), 0, gr.Gallery(selected_index=0)]

    def answer_example(self, choice: str | None, event: gr.SelectData) -> list[Any]:
        """Answer the example that somebody chose, and show it as the image."""
        number = event.index
        if type(number) is not int or not 0 <= number < len(self.examples.images):
            raise gr.Error("There is no such example.", print_exception=False)
        return [*self._said(choice, self._example(number)), number]

    def answer_upload(self, upload: tuple[str, str] | None, choice: str | None, asked: _Asked | None) -> list[Any]:
        """Answer an image that somebody brought; none is marked among the examples then."""
        if upload is None:
            return [*self._said(choice, None), gr.Gallery(selected_index=None)]
        path, name = upload
        number = self._shown.get(path)
        if number is None:
            return [*self._said(choice, _Asked(self._explain(path, name))), gr.Gallery(selected_index=None)]
        if asked is not None and asked.example == number:
            return [gr.skip()] * (2 + 5 * len(self.networks) + 1)
        return [*self._said(choice, self._example(number)), gr.Gallery(selected_index=number)]

    def draw(self, choice: str | None, asked: _Asked | None) -> list[Any]:
        """Return picture, caption and plot of each network."""
        if asked is None:
            return [None, "", gr.Image(None, visible=False)] * len(self.networks)
        shown: list[Any] = []
        for view in views(asked.explanations, choice or MOST_TO_SEE):
            shown += [gr.Image(view.picture, alt_text=view.alt), view.caption, gr.Image(None, visible=False)]
            if view.channels is not None:
                shown[-1] = gr.Image(view.channels.picture, alt_text=view.channels.alt, visible=True)
        return shown

    def _example(self, number: int) -> _Asked:
        if number not in self._answered:
            example = self.examples.images[number]
            self._answered[number] = _Asked(self._explain(example.image, example.name), number)
        return self._answered[number]

    def _explain(self, image: ImageLike, name: str) -> Sequence[Explanation]:
        try:
            (explanations,) = explain_together(self.networks, [image], top=_TOP)
        except UserError as err:
            words = f"{printable(name)}: {err.file.reason}." if isinstance(err, UnreadableImageError) else str(err)
            raise gr.Error(html.escape(words, quote=False), title=_UNUSABLE, print_exception=False) from err
        return explanations

    def _said(self, choice: str | None, asked: _Asked | None) -> list[Any]:
        """Return all that a page shows of an image, or of none."""
        if asked is None:
            return [None, "", *[_EMPTY, None] * len(self.networks), *self.draw(choice, None)]
        answer = None if asked.example is None else self.examples.images[asked.example].answer
        said: list[Any] = []
        for explanation, stage in zip(asked.explanations, most_to_see(asked.explanations), strict=True):
            said += [in_words(explanation, stage, answer), dict(explanation.predictions)]
        together = agreement(self.names, asked.explanations) if len(self.networks) > 1 else ""
        return [asked, together, *said, *self.draw(choice, asked)]
