"""The page's desk: networks, examples, and the answers to these; each event of the page is one method.

What is answered is always the image that the page shows, an example or not: whatever comes last stays. Values are in
the order in which ``page`` names its components: what is said of all, then sentence and first answers of each network,
then what :meth:`Desk.draw` returns.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr

from csham.app.examples import Examples, find_examples
from csham.app.names import short_names
from csham.app.sentences import agreement, in_words
from csham.app.views import MOST_TO_SEE, most_to_see, views
from csham.errors import UserError
from csham.explain import Explanation, explain_together
from csham.inference import Trained
from csham.inference.transform import ImageLike, UnreadableImageError
from csham.words import printable

__all__ = ["EMPTY", "TOP", "Desk", "unopened"]

TOP = 5
"""Answers of each network."""
EMPTY = "Drop an image, or paste one."
"""Said in the place of an answer where there is none."""

_UNUSABLE = "This image cannot be used"


class Desk:
    """The networks of a page, their examples, and the answers to these, each computed once."""

    def __init__(self, networks: Sequence[Trained], *, with_examples: bool) -> None:
        self.networks = networks
        self._with_examples = with_examples
        self.names = short_names(networks)
        self._looked = Lock()
        self._answered: dict[int, Sequence[Explanation]] = {}
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

    def first(self, upload: tuple[str, str] | None) -> Any:
        """Choose the first example, unless somebody was faster than the page and brought an image."""
        return 0 if upload is None and self.examples.images else gr.skip()

    def choose(self, event: gr.SelectData) -> int:
        """Choose an example."""
        number = event.index
        if type(number) is not int or not 0 <= number < len(self.examples.images):
            raise gr.Error("There is no such example.", print_exception=False)
        return number

    def show(self, show: Callable[[Any], Any], number: int | None) -> Any:
        """Show an example as the image; the page then asks for its answer as for an image that somebody brought."""
        shown = show(None if number is None else self.examples.images[number].picture)
        if number is not None:
            self._shown[shown.path] = number
        return shown

    def answer(self, upload: tuple[str, str] | None, choice: str | None) -> list[Any]:
        """Answer the image, and mark it among the examples if it is one."""
        if upload is None:
            return [*self._said(choice, None), gr.Gallery(selected_index=None)]
        path, name = upload
        number = self._shown.get(path)
        if number is None:
            said = self._said(choice, self._explain(path, name))
        else:
            said = self._said(choice, self._example(number), self.examples.images[number].answer)
        return [*said, gr.Gallery(selected_index=number)]

    def draw(self, choice: str | None, explanations: Sequence[Explanation] | None) -> list[Any]:
        """Return picture, caption and plot of each network."""
        if explanations is None:
            return [None, "", gr.Image(None, visible=False)] * len(self.networks)
        shown: list[Any] = []
        for view in views(explanations, choice or MOST_TO_SEE):
            shown += [gr.Image(view.picture, alt_text=view.alt), view.caption, gr.Image(None, visible=False)]
            if view.channels is not None:
                shown[-1] = gr.Image(view.channels.picture, alt_text=view.channels.alt, visible=True)
        return shown

    def _example(self, number: int) -> Sequence[Explanation]:
        if number not in self._answered:
            example = self.examples.images[number]
            self._answered[number] = self._explain(example.image, example.name)
        return self._answered[number]

    def _explain(self, image: ImageLike, name: str) -> Sequence[Explanation]:
        try:
            (explanations,) = explain_together(self.networks, [image], top=TOP)
        except UserError as err:
            words = f"{printable(name)}: {err.file.reason}." if isinstance(err, UnreadableImageError) else str(err)
            raise gr.Error(html.escape(words, quote=False), title=_UNUSABLE, print_exception=False) from err
        return explanations

    def _said(
        self, choice: str | None, explanations: Sequence[Explanation] | None, answer: str | None = None
    ) -> list[Any]:
        """Return all that a page shows of an image, or of none; ``answer`` is its class if that is known."""
        if explanations is None:
            return [None, "", *[EMPTY, None] * len(self.networks), *self.draw(choice, None)]
        said: list[Any] = []
        for explanation, stage in zip(explanations, most_to_see(explanations), strict=True):
            said += [in_words(explanation, stage, answer), dict(explanation.predictions)]
        together = agreement(self.names, explanations) if len(self.networks) > 1 else ""
        return [explanations, together, *said, *self.draw(choice, explanations)]


def unopened(payload: Any) -> tuple[str, str] | None:
    """Give the path of an uploaded file, and the name that it had."""
    if payload is None:
        return None
    if payload.path is None:
        raise gr.Error("An image is uploaded as a file.", title=_UNUSABLE, print_exception=False)
    return payload.path, payload.orig_name or Path(payload.path).name
