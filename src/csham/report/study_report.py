"""A study's report: one page, its pictures and its tables, made from the study's folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.files import new_folder
from csham.report.study_material import Material, read_material
from csham.report.study_page import render_page
from csham.report.study_pictures import CURVES, Picture, draw_difference_picture, draw_families
from csham.report.study_tables import (
    budget_table,
    class_table,
    curve,
    curve_table,
    network_table,
    run_table,
    verdict_table,
)
from csham.report.tables import Table, csv_bytes, latex_bytes, markdown_bytes, xlsx_bytes
from csham.study.findings import ClassDifference, Results
from csham.study.results import per_class_difference

__all__ = ["Report", "check_place", "listing", "replace_report", "report_files", "write_report"]

GENERATOR = '<meta name="generator" content="csham report">'
_SHEET = "tables/study.xlsx"
_PARTS = {"index.html", "figures", "tables"}


@dataclass(frozen=True)
class Report:
    """Report that :func:`write_report` made.

    Attributes:
        page: The HTML file.
        results: Results in it.
        warnings: Warnings for its reader.
    """

    page: Path
    results: Results
    warnings: Sequence[str]


def write_report(study: Path | str, output: Path | str | None = None) -> Report:
    """Write ``index.html``, ``figures/`` and ``tables/``; a report that is there already is replaced as a whole.

    The same records give the same bytes.

    Args:
        study: The study's folder, which is only read.
        output: Folder of the report; by default ``report`` in the study's.

    Raises:
        UserError: There is no such study, a file of it cannot be understood, or the output folder holds something else.
    """
    study = Path(study)
    folder = study / "report" if output is None else Path(output)
    material = read_material(study)
    check_place(folder)
    classes, notes = _classes(material)
    tables = _tables(material, classes)
    differences, families = draw_difference_picture(material), draw_families(material)
    pictures = [picture for family in families for picture in (*family.points, *family.curves)]
    contents = report_files(tables, [*([differences] if differences else []), *pictures])
    shown = {table.name: table for table in tables}
    page = render_page(material, shown, differences, families, classes, listing(contents), notes)
    place = replace_report(folder, page, contents)
    if _SHEET not in contents:
        notes.append('The tables are not in a spreadsheet, which needs openpyxl: pip install "csham[report]".')
    if material.unchecked:
        notes.append(f"{material.unchecked}.")
    return Report(place, material.results, [*material.warnings, *notes])


def _classes(material: Material) -> tuple[dict[str, list[ClassDifference]], list[str]]:
    classes, notes = {}, []
    for one in material.results.comparisons:
        try:
            differences = per_class_difference(material.results, one.label) if one.n else []
        except UserError as err:
            notes.append(f"No table class by class for {one.label}: {err}")
        else:
            if differences:
                classes[one.label] = differences
    return classes, notes


def _tables(material: Material, classes: Mapping[str, Sequence[ClassDifference]]) -> list[Table]:
    labels = [label for family in material.families.values() for label in family]
    curves = {name: [one for label in labels if (one := curve(material, label, name)) is not None] for name in CURVES}
    return [
        verdict_table(material),
        budget_table(material),
        network_table(material),
        run_table(material),
        curve_table(curves),
        class_table(classes),
    ]


def report_files(tables: Sequence[Table], pictures: Iterable[Picture], sheet: str = _SHEET) -> dict[str, bytes]:
    """Return the content of every file but the page, by its place beside it; ``sheet`` is that of the spreadsheet."""
    files = {}
    for picture in pictures:
        files[f"figures/{picture.name}.svg"] = picture.svg
        files[f"figures/{picture.name}.png"] = picture.png
    filled = [table for table in tables if table.items]
    for table in filled:
        files[f"tables/{table.name}.csv"] = csv_bytes(table)
        if table.shown:
            files[f"tables/{table.name}.md"] = markdown_bytes(table)
            files[f"tables/{table.name}.tex"] = latex_bytes(table)
    return files | ({} if not filled or find_spec("openpyxl") is None else {sheet: xlsx_bytes(filled)})


def listing(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the files of a report as its page lists them."""
    kinds: dict[str, Callable[[str], bool]] = {
        "Tables": lambda path: path.startswith("tables/"),
        "Pictures to edit or print": lambda path: path.endswith(".svg"),
        "Pictures as pixels": lambda path: path.endswith(".png"),
    }
    return [
        {"what": what, "paths": paths}
        for what, holds in kinds.items()
        if (paths := [path for path in files if holds(path)])
    ]


def check_place(folder: Path) -> None:
    """Refuse a folder whose content would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder for the report with --output DIR.")
    others = sorted({path.name for path in folder.iterdir()} - _PARTS)
    page = folder / "index.html"
    ours = not page.exists() or GENERATOR in page.read_text(encoding="utf-8", errors="replace")
    if others or not ours:
        what = ", ".join(others[:3]) if others else "an index.html of another program"
        raise UserError(
            f"{folder} holds {what}, and a report replaces its whole folder. Name an empty one with --output DIR."
        )


def replace_report(folder: Path, page: str, files: Mapping[str, bytes]) -> Path:
    """Put a folder with a page and these files in the place of the one that may be there; return the page's place."""
    try:
        with new_folder(folder, replace=True) as new:
            for name, content in {"index.html": page.encode("utf-8", "replace"), **files}.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except OSError as err:
        raise UserError(
            f"cannot write the report to {folder}: {err.strerror or err}. Another place: --output DIR."
        ) from err
    return folder / "index.html"
