"""``csham report``: a study's page, pictures and tables, from its records; or those of several studies together."""

from __future__ import annotations

import shlex
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from csham.cli.common import check_report_packages, print_json
from csham.cli.options import OUTPUT, DebugOption, JsonOption
from csham.errors import UserError
from csham.training.outputs import check_folder, check_output
from csham.words import say

__all__ = ["report"]


def report(
    studies: Annotated[list[Path], typer.Argument(help="The study's folder, or several.", show_default=False)],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report, replaced as a whole.",
            show_default="STUDY/report; of several it must be said",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Of several studies: this file too.", show_default="none", rich_help_panel=OUTPUT),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show the page in a browser.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a study's report again: one HTML page, pictures and tables; of several studies, one of all together."""
    check_report_packages()
    check_folder("--output", output, runs=studies)
    check_output("--markdown", markdown, runs=studies)
    page = (
        _one(studies[0], output, markdown, as_json=as_json)
        if len(studies) == 1
        else _together(studies, output, markdown, as_json=as_json)
    )
    if not as_json:
        say(f"report: {shlex.quote(str(page))}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())


def _one(study: Path, output: Path | None, markdown: Path | None, *, as_json: bool) -> Path:
    from csham.report.study_report import write_report  # noqa: PLC0415  numpy, scipy and jinja2 take a second

    if markdown is not None:
        raise UserError("--markdown is of several studies; the tables of one are in its report's tables/, as Markdown.")
    found = write_report(study, output)
    if as_json:
        print_json(found.results.to_dict())
    else:
        say(found.results.headline)
        for warning in found.warnings:
            say(f"note: {warning}", error=True)
    return found.page


def _together(studies: list[Path], output: Path | None, markdown: Path | None, *, as_json: bool) -> Path:
    from csham.report.overview_page import write_overview  # noqa: PLC0415
    from csham.study.overview import see_together  # noqa: PLC0415

    if output is None:
        raise UserError(f"{len(studies)} studies: where should the page of all go? Name a folder with --output DIR.")
    overview = see_together(studies)
    page = write_overview(overview, output, markdown)
    if as_json:
        print_json(overview.to_dict() | {"report": str(page)})
    else:
        say(overview.headline)
        for note in overview.notes:
            say(f"note: {note}", error=True)
    return page
