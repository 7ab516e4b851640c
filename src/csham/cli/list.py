"""``csham list``: what can be named, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import csham.data
from csham.attach.names import POSITIONS, STRATEGIES
from csham.backbones.names import BACKBONES
from csham.cli.common import print_json, print_markdown, print_note, print_table
from csham.cli.options import OUTPUT, DebugOption, JsonOption, QuietOption
from csham.errors import UserError, unknown_name
from csham.inference.zoo import TABLE, zoo_rows
from csham.layers.names import ATTENTIONS, FORMULAS, PAPER
from csham.training.recipes import RECIPES
from csham.words import counted, say

__all__ = ["list_names"]

Row = dict[str, Any]


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="backbones, attentions, strategies, positions, datasets, recipes, zoo or results.",
            show_default="all that can be named",
        ),
    ] = None,
    *,
    folder: Annotated[
        Path | None,
        typer.Option(help="results: of the studies and runs in this folder.", show_default="those csham was tried by"),
    ] = None,
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables as Markdown.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """List what can be named, with parameters and source; or results."""
    if kind is not None and kind not in (*_KINDS, RESULTS):
        raise unknown_name("kind", kind, [*_KINDS, RESULTS])
    if as_json and as_markdown:
        raise UserError("list: --json and --markdown exclude each other. Give one of them.")
    if folder is not None and kind != RESULTS:
        raise UserError(f"--folder is of csham list {RESULTS} alone. The others are what csham knows by name.")
    if kind == RESULTS:
        _print_results(_results(folder), as_json=as_json, as_markdown=as_markdown)
        return
    found = {name: rows() for name, rows in _KINDS.items() if kind in (None, name)}
    if as_json:
        print_json(found if kind is None else found[kind])
        return
    for name, rows in found.items():
        print_rows = print_markdown if as_markdown else partial(print_table, stack=True)
        print_rows("" if as_markdown and kind else name, list(rows[0]), (list(row.values()) for row in rows))
        if name in _PARAMS_ARE:
            (say if as_markdown else print_note)(*_PARAMS_ARE[name], "")


def _results(folder: Path | None) -> list[Row]:
    """Return what was measured: of a folder, or as it came with the package."""
    if folder is None:
        rows: list[Row] = json.loads(TABLE.read_bytes())
        return rows
    from csham.study.catalogue import read_results  # noqa: PLC0415  numpy and scipy take a second

    def note(text: str) -> None:
        say(f"note: {text}", error=True)

    return [row.to_dict() for row in read_results(folder, note)]


def _print_results(rows: list[Row], *, as_json: bool, as_markdown: bool) -> None:
    if as_json:
        print_json(rows)
        return
    header, *_ = shown = [_shown(row) for row in rows]
    print_rows = print_markdown if as_markdown else partial(print_table, stack=True)
    print_rows("" if as_markdown else RESULTS, list(header), (list(row.values()) for row in shown))
    commands = dict.fromkeys((row["result"], row["command"]) for row in rows if row["command"])
    mark = "`" if as_markdown else ""
    lines = [f"{mark}{result}{mark}: {mark}{command}{mark}" for result, command in commands]
    if as_markdown:
        say(RESULTS_ARE, "", "Made by", "", *(f"- {line}" for line in lines))
    else:
        print_note(RESULTS_ARE, "", "made by", *lines)


def _shown(row: Row) -> Row:
    """Return a result as it is read."""
    return {
        "result": row["result"],
        "network": row["network"],
        "attention": row["attention"],
        "data": f"{row['data']}, {row['image_size']} px",
        "recipe": f"{row['recipe']}, {counted(row['epochs'], 'epoch')}",
        "seeds": row["seeds"],
        "top-1": _with_interval(row["top1"], row["top1_interval"]),
        "beside plain": _with_interval(row["difference"], row["difference_interval"], sign="+"),
        "verdict": row["verdict"] or "",
        "time": "" if row["cost"] is None else f"{row['cost']:.2f}\N{MULTIPLICATION SIGN}",
    }


def _with_interval(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    low, high = (f"{end:{sign}.2f}" for end in interval) if interval else ("", "")
    return f"{value:{sign}.2f} ({low} to {high})" if interval else f"{value:{sign}.2f}"


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
    "zoo": zoo_rows,
}

RESULTS = "results"

RESULTS_ARE = (
    "top-1: last epoch's on the test images, mean over seeds in percent, with its 95% interval; beside plain: mean "
    "paired difference in points, with its interval; time: of training, over the plain network's, measured side by side"
)

_PARAMS_ARE = {
    "backbones": [
        "params: for 100 classes and 32-pixel images; any network of timm's or torchvision's works by its name too"
    ],
    "attentions": [f"params: for 256 channels; in the formulas {FORMULAS}", f"paper: {PAPER}"],
}
