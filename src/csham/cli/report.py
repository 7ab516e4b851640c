"""``csham report``: a study's page, pictures and tables, from its records."""

from __future__ import annotations

import shlex
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from csham.cli.common import check_report_packages, print_json
from csham.cli.options import OUTPUT, DebugOption, JsonOption
from csham.words import say

__all__ = ["report"]


def report(
    study: Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report, replaced as a whole.", show_default="STUDY/report", rich_help_panel=OUTPUT
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show the page in a browser.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a study's report again: one HTML page, pictures and tables."""
    check_report_packages()
    from csham.report.study_report import write_report  # noqa: PLC0415  numpy, scipy and jinja2 take a second

    found = write_report(study, output)
    if as_json:
        print_json(found.results.to_dict())
    else:
        say(found.results.headline)
        for warning in found.warnings:
            say(f"note: {warning}", error=True)
        say(f"report: {shlex.quote(str(found.page))}")
    if open_page:
        webbrowser.open(found.page.resolve().as_uri())
