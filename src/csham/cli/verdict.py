"""``csham verdict``: the statistics of a study on a table of runs that any trainer wrote."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csham.cli.common import check_report_packages, print_json, print_table
from csham.cli.options import DebugOption, JsonOption, PageOption
from csham.errors import UserError
from csham.study.grid import WORTHWHILE
from csham.words import say

if TYPE_CHECKING:
    from csham.study.verdict import MetricVerdict, TableVerdict

__all__ = ["verdict"]

_TABLE, _READING = "Columns", "How numbers are read"


def verdict(
    table: Annotated[
        Path, typer.Argument(help="A row for each run: CSV, TSV, JSON lines or Parquet.", show_default=False)
    ],
    *,
    metric: Annotated[
        str,
        typer.Option(
            "--metric", "--metrics", help="Of the metric, or several.", rich_help_panel=_TABLE, show_default=False
        ),
    ],
    variant: Annotated[
        str | None,
        typer.Option(
            help="Of what is compared.", rich_help_panel=_TABLE, show_default="variant, name, model, attention, ..."
        ),
    ] = None,
    seed: Annotated[
        str, typer.Option("--seed", "--seeds", help="By which runs are paired: seeds or folds.", rich_help_panel=_TABLE)
    ] = "seed",
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            "--groups",
            help="Compare within these only: backbone,dataset.",
            rich_help_panel=_TABLE,
            show_default="none",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The variant to compare with.", rich_help_panel=_READING, show_default="plain, none, baseline, ..."
        ),
    ] = None,
    worthwhile: Annotated[
        str | None,
        typer.Option(
            help="Smallest gain worth having, of all or by metric: 0.5, or map50=0.5,loss=0.01.",
            rich_help_panel=_READING,
            show_default=f"{WORTHWHILE:g} percentage points",
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="percent, fraction (of one) or plain; of all or by metric.",
            rich_help_panel=_READING,
            show_default="by the values",
        ),
    ] = None,
    lower_is_better: Annotated[
        str, typer.Option(help="Metrics of which less is better.", rich_help_panel=_READING, show_default="none")
    ] = "",
    higher_is_better: Annotated[
        str,
        typer.Option(
            help="Metrics of which more is, although they sound otherwise.",
            rich_help_panel=_READING,
            show_default="all others",
        ),
    ] = "",
    rounded: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Step that numbers were rounded to; 0: they are exact.",
            rich_help_panel=_READING,
            show_default="by their last decimals",
        ),
    ] = None,
    output: PageOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Judge any table of runs as a study is judged: paired by seed, with intervals and a verdict for each variant."""
    check_report_packages()
    from csham.study.verdict import verdict as judge  # noqa: PLC0415  scipy takes a second

    result = judge(
        table,
        metric=_words(metric),
        variant=variant,
        seed=seed,
        baseline=baseline,
        groups=_words(group or ""),
        worthwhile=_by_metric("--worthwhile", worthwhile, _number),
        unit=_by_metric("--unit", unit, str),
        lower_is_better=_words(lower_is_better),
        higher_is_better=_words(higher_is_better),
        rounded=rounded,
    )
    page = None if output is None else _write(result, output)
    if as_json:
        print_json(result.to_dict() | ({} if page is None else {"report": str(page)}))
        return
    _print(result)
    if page is not None:
        say(f"report: {shlex.quote(str(page))}")


def _write(result: TableVerdict, output: Path) -> Path:
    from csham.report.verdict_page import write_verdict  # noqa: PLC0415  so does matplotlib

    return write_verdict(result, output)


def _by_metric(option: str, text: str | None, read: Callable[[str], Any]) -> Any:
    """Read one value for all metrics, or ``name=value`` with commas between."""
    if text is None:
        return None
    if "=" not in text:
        return read(text.strip())
    pairs = [word.rpartition("=") for word in _words(text)]
    if not all(name for name, _, _ in pairs):
        raise UserError(f"{option} takes one value for all metrics, or name=value for each; got {text!r}.")
    return {name.strip(): read(value.strip()) for name, _, value in pairs}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--worthwhile takes numbers, got {text!r}.") from None


def _print(result: TableVerdict) -> None:
    from csham.study.statistics import points, with_sign  # noqa: PLC0415

    for one in result.metrics:
        rows = []
        compared = {(c.backbone, c.name): c for c in one.comparisons}
        for (group, name), values in one.values.items():
            found = compared.get((group, name))
            interval = found.t_interval if found else None
            rows.append(
                [
                    *([group] if _grouped(one) else []),
                    name,
                    str(values.n if values else 0),
                    f"{values.mean:.{one.measure.digits}f}" if values else "",
                    points(values.sd) if values and values.sd is not None else "",
                    with_sign(found.mean) if found and found.mean is not None else "",
                    f"{with_sign(interval[0])} to {with_sign(interval[1])}" if interval else "",
                    found.verdict if found else "baseline",
                ]
            )
        shown = {"plain": "", "percent": ", %", "fraction": ", %"}[one.measure.unit]
        lower = ", lower is better" if one.measure.better == "lower" else ""
        header = ["variant", "seeds", "mean", "deviation", "gain", "95%", "verdict"]
        print_table(f"{one.measure.name}{shown}{lower}", [*(["group"] if _grouped(one) else []), *header], rows)
    say(*result.headline.splitlines())
    for note in result.notes:
        say(f"note: {note}", error=True)


def _grouped(one: MetricVerdict) -> bool:
    return any(group for group, _ in one.values)
