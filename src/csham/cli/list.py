"""``csham list``: what can be named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import typer

import csham.data
from csham.attach.names import POSITIONS, STRATEGIES
from csham.backbones.names import BACKBONES
from csham.cli.common import print_json, print_markdown, print_note, print_table
from csham.cli.options import OUTPUT, DebugOption, JsonOption, QuietOption
from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS, FORMULAS, PAPER
from csham.training.recipes import RECIPES
from csham.words import say

__all__ = ["list_names"]

Row = dict[str, Any]


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(help="backbones, attentions, strategies, positions, datasets or recipes.", show_default="all"),
    ] = None,
    *,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List what can be named, with parameters and source."""
    if kind is not None and kind not in _KINDS:
        raise unknown_name("kind", kind, _KINDS)
    if as_json and as_markdown:
        raise UserError("list: --json and --markdown exclude each other. Give one of them.")
    found = {name: rows() for name, rows in _KINDS.items() if kind in (None, name)}
    if as_json:
        print_json(found if kind is None else found[kind])
        return
    for name, rows in found.items():
        print_rows = print_markdown if as_markdown else partial(print_table, stack=True)
        print_rows("" if as_markdown and kind else name, list(rows[0]), (list(row.values()) for row in rows))
        if name in _PARAMS_ARE:
            (say if as_markdown else print_note)(*_PARAMS_ARE[name], "")


def _of(names: Mapping[str, Any], *more: str) -> list[Row]:
    columns = ("name", "summary", *more, "source")
    return [{column: getattr(entry, column) for column in columns} for entry in names.values()]


def _datasets() -> list[Row]:
    return [{"name": name, "summary": summary} for name, summary in csham.data.DATASETS.items()]


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "backbones": lambda: _of(BACKBONES, "params", "published", "note"),
    "attentions": lambda: _of(ATTENTIONS, "maps", "two_part", "formula", "params", "paper"),
    "strategies": lambda: _of(STRATEGIES),
    "positions": lambda: _of(POSITIONS),
    "datasets": _datasets,
    "recipes": lambda: _of(RECIPES),
}

_PARAMS_ARE = {
    "backbones": [
        "params: for 100 classes and 32-pixel images; any network of timm's or torchvision's works by its name too"
    ],
    "attentions": [f"params: for 256 channels; in the formulas {FORMULAS}", f"paper: {PAPER}"],
}
