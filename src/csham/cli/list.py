"""``csham list``: what can be named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

import csham.backbones
import csham.data
import csham.layers
from csham.attach.names import POSITIONS, STRATEGIES
from csham.backbones.names import BACKBONES
from csham.cli.common import DebugOption, JsonOption, QuietOption, print_json, print_table
from csham.errors import unknown_name
from csham.layers.names import ATTENTIONS
from csham.training.recipes import RECIPES

__all__ = ["list_names"]

Row = dict[str, Any]


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(help="backbones, attentions, strategies, positions, datasets or recipes.", show_default="all"),
    ] = None,
    *,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """What can be named, with its source; for backbones and attentions alone, with parameters."""
    if kind is not None and kind not in _KINDS:
        raise unknown_name("kind", kind, _KINDS)
    found = {name: rows() for name, rows in _KINDS.items() if kind in (None, name)}
    if kind in _COUNTERS:
        for row in found[kind]:
            row["params"] = _COUNTERS[kind](row["name"])
    if as_json:
        print_json(found if kind is None else found[kind])
        return
    for name, rows in found.items():
        print_table(name, list(rows[0]), (list(row.values()) for row in rows))
    if kind in _COUNTED_AT:
        print(f"params: {_COUNTED_AT[kind]}")


def _of(names: Mapping[str, Any]) -> list[Row]:
    return [{"name": name, "summary": entry.summary, "source": entry.source} for name, entry in names.items()]


def _datasets() -> list[Row]:
    return [{"name": name, "summary": summary} for name, summary in csham.data.DATASETS.items()]


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "backbones": lambda: _of(BACKBONES),
    "attentions": lambda: _of(ATTENTIONS),
    "strategies": lambda: _of(STRATEGIES),
    "positions": lambda: _of(POSITIONS),
    "datasets": _datasets,
    "recipes": lambda: _of(RECIPES),
}


def _backbone_params(name: str) -> int:
    return _count(lambda: csham.backbones.create_model(name, num_classes=100, image_size=32))


def _attention_params(name: str) -> int:
    return _count(lambda: csham.layers.create_attention(name, 256))


def _count(create: Callable[[], Any]) -> int:
    """Count parameters without making their values."""
    import torch  # noqa: PLC0415  takes seconds to import

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create().parameters())


_COUNTERS = {"backbones": _backbone_params, "attentions": _attention_params}
_COUNTED_AT = {"backbones": "for 100 classes and 32-pixel images", "attentions": "for 256 channels"}
