"""Page, pictures, tables and Markdown of several studies seen together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from csham.files import write_atomically
from csham.report.study_page import render
from csham.report.study_pictures import Picture
from csham.report.study_report import check_place, listing, replace_report, report_files
from csham.report.tables import Column, Table, fixed, markdown_bytes, markdown_text
from csham.report.verdict_page import verdict_page, verdict_pictures, verdict_tables
from csham.study.overview import Overview

__all__ = ["write_overview"]


def write_overview(overview: Overview, output: Path | str, markdown: Path | str | None = None) -> Path:
    """Write ``index.html``, ``figures/`` and ``tables/``, and the same in short as Markdown if asked for.

    Args:
        overview: As :func:`csham.study.overview.see_together` returns it.
        output: Folder of the page; one that is there already is replaced as a whole.
        markdown: File with the finding, the pictures and the tables, which it links in ``output``.

    Returns:
        The page.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    folder = Path(output)
    check_place(folder)
    own = [_study_table(overview), _cost_table(overview)]
    judged = overview.verdict
    tables = verdict_tables(judged) if judged else []
    pictures = verdict_pictures(judged) if judged else []
    contents = report_files([*own, *tables], pictures, "tables/overview.xlsx")
    page = _page(overview, own, tables, pictures) | {"files": listing(contents)}
    place = replace_report(folder, render("overview.html", page), contents)
    if markdown is not None:
        text = _markdown(overview, own, tables, pictures, os.path.relpath(folder, Path(markdown).parent))
        write_atomically(Path(markdown), lambda file: file.write(text.encode("utf-8", "replace")))
    return place


def _study_table(overview: Overview) -> Table:
    columns = [
        Column("study", attrgetter("name"), keys=("study",), numeric=False),
        Column("data", attrgetter("data"), keys=("data",), numeric=False),
        Column("px", attrgetter("image_size"), keys=("image_size",)),
        Column("epochs", attrgetter("epochs"), keys=("epochs",)),
        Column("networks", attrgetter("networks"), keys=("networks",)),
        Column("seeds", attrgetter("seeds"), keys=("seeds",)),
        Column("planned runs", attrgetter("planned"), keys=("planned",)),
        Column("done", attrgetter("done"), keys=("done",)),
        Column("failed", attrgetter("failed"), keys=("failed",)),
        Column("made on", lambda row: ", ".join(row.machines) or None, keys=("machines",), numeric=False),
    ]
    return Table("studies", overview.progress, columns, overview.studies)


def _cost_table(overview: Overview) -> Table:
    columns = [
        Column("study", attrgetter("group"), keys=("study",), numeric=False),
        Column("attention", attrgetter("variant"), keys=("attention",), numeric=False),
        Column(
            "training time", attrgetter("ratio"), lambda ratio: f"{fixed(ratio)}\N{MULTIPLICATION SIGN}", ("ratio",)
        ),
        Column("on", attrgetter("machine"), keys=("machine",), numeric=False),
        Column(
            "measured",
            attrgetter("measured"),
            keys=("measured",),
            show=lambda row: "side by side" if row.measured else "by the runs, busy machine or not",
            numeric=False,
        ),
    ]
    return Table("costs", "Training time of each network over that of the plain one.", columns, overview.costs)


def _page(
    overview: Overview, own: Sequence[Table], tables: Sequence[Table], pictures: Sequence[Picture]
) -> dict[str, Any]:
    studies, costs = own
    judged = overview.verdict
    page = verdict_page(judged, tables, pictures) if judged else _NOTHING
    sections = [("studies", "Studies"), *page["sections"][: -2 if judged else None]]
    sections += [("costs", "Training time")] * bool(costs.items)
    return {
        **page,
        "kind": "overview",
        "title": "Several studies",
        "facts": " · ".join(study.name for study in overview.studies),
        "headline": overview.headline,
        "warnings": overview.notes,
        "studies": studies,
        "costs": costs,
        "sections": [*sections, ("method", "What the numbers mean"), ("files", "Files")],
    }


_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("cautions", "sections", "differences", "sentences"), ()),
    "comparisons": 0,
    "margin": "what is worth having",
    "verdicts": None,
}


def _markdown(
    overview: Overview, own: Sequence[Table], tables: Sequence[Table], pictures: Sequence[Picture], place: str
) -> str:
    """Return the finding, how much of the plan it stands on first, with its pictures and tables."""
    studies, costs = own
    verdicts, pooled = tables[:2] if tables else (None, None)
    parts = [
        markdown_text(overview.headline),
        *(f"![{markdown_text(one.title)}]({place}/figures/{one.name}.svg)" for one in pictures),
    ]
    for title, table in (
        ("Over studies together", pooled),
        ("Verdicts", verdicts),
        ("Training time", costs),
        ("Plan", studies),
    ):
        if table is not None and table.items:
            parts += [f"## {title}", markdown_bytes(table).decode().rstrip()]
    if overview.notes:
        parts += ["## Before you rely on this", "\n".join(f"- {markdown_text(note)}" for note in overview.notes)]
    parts.append(f"Every run and every digit: [{place}/index.html]({place}/index.html).")
    return "\n\n".join(parts) + "\n"
