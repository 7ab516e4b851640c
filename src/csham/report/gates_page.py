"""Page, pictures and tables of what the weights of attention do by stage, as a study's report has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csham.report.drawing import MUTED, drawing, looks_of
from csham.report.study_figures import add_legend
from csham.report.study_page import inlined, render
from csham.report.study_pictures import Picture, picture_of
from csham.report.study_report import check_place, listing, replace_report, report_files
from csham.report.tables import Column, Table, fixed, plus_minus
from csham.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from csham.report.drawing import Look

__all__ = ["gate_tables", "write_gates"]

Row = Mapping[str, Any]

_SECTIONS = [
    ("stages", "By stage"),
    ("runs", "Every run"),
    ("method", "What the numbers mean"),
    ("files", "Files"),
]

_KINDS = {"channel": "Channel weights", "spatial": "Spatial weights", "full": "Weights of single values"}

_HELP = {
    "mean": "Over images, weights and points.",
    "from 1/2": "Mean distance of a weight from 1/2, where an untrained sigmoid is.",
    "from 1": "Mean distance of a weight from 1, where it changes nothing.",
    "within": "Standard deviation of the weights of one image, mean over images.",
    "across": "Standard deviation of one weight over images, mean over weights.",
    "dead": "Weights that hardly vary over images, in percent.",
    "θ": "Mean of the points' gates: 1 shuts attention out.",
}


def write_gates(
    title: str,
    table: Sequence[Row],
    runs: Sequence[Row],
    nothing: Sequence[str],
    dead: float,
    output: Path | str,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``index.html``, ``figures/`` and ``tables/``; a report that is there already is replaced as a whole.

    Args:
        title: What was measured.
        table: Rows of :func:`csham.explain.gate_table`.
        runs: Rows of every :class:`csham.explain.RunGates`.
        nothing: Sentences on the networks that show no weights.
        dead: Deviation below which a weight is dead.
        output: Folder of the report.
        notes: What a reader should know before relying on it.

    Returns:
        The page.

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """
    folder = Path(output)
    check_place(folder)
    tables, pictures = gate_tables(table, runs), _pictures(table)
    contents = report_files(tables, pictures, "tables/gates.xlsx")
    networks = dict.fromkeys((row["data"], row["network"]) for row in table)
    page = {
        "kind": "gates",
        "title": title,
        "facts": " · ".join([counted(len(networks), "network"), counted(len({row["run"] for row in runs}), "run")]),
        "headline": _headline(table, dead),
        "cautions": [],
        "warnings": notes,
        "sections": _SECTIONS,
        "pictures": [inlined(picture) for picture in pictures],
        "stages": tables[0],
        "runs": tables[1],
        "nothing": nothing,
        "dead": f"{dead:g}",
        "files": listing(contents),
    }
    text = render("gates.html", page)
    return replace_report(folder, text, contents)


def gate_tables(table: Sequence[Row], runs: Sequence[Row]) -> list[Table]:
    """Return the table of networks by stage, and that of every run."""
    several = len({row["data"] for row in table}) > 1
    named = [
        _text("data", "data" if several else ""), _text("network", "network"), _text("stage", "stage"),
        _text("kind", "weights"),
    ]  # fmt: skip
    together = [
        *named,
        Column("runs", itemgetter("runs"), keys=("runs",)),
        *(Column("", itemgetter(name), keys=(name,)) for name in ("points", "weights")),
        *_numbers(with_sd=True),
    ]
    single = [
        *named,
        Column("seed", itemgetter("seed"), keys=("seed",)),
        _text("run", ""),
        _text("epoch", ""),
        *(Column("", itemgetter(name), keys=(name,)) for name in ("images", "points", "weights")),
        *_numbers(with_sd=False),
    ]
    return [
        Table("gates", "Weights of attention by stage, means over runs ± their deviation.", together, table),
        Table("runs", "Weights of attention by stage, of every run.", single, runs),
    ]


def _text(name: str, title: str) -> Column:
    return Column(title, itemgetter(name), keys=(name,), numeric=False)


def _numbers(*, with_sd: bool) -> list[Column]:
    heads = [
        ("mean", "mean"), ("from_half", "from 1/2"), ("from_one", "from 1"), ("within", "within"), ("across", "across"),
        ("dead", "dead"), ("theta", "θ"),
    ]  # fmt: skip
    columns = []
    for name, title in heads:
        keys = (name, f"{name}_sd") if with_sd else (name,)
        columns.append(Column(title, itemgetter(*keys), keys=keys, show=_shown(name), help=_HELP[title]))
    return columns + [Column("", itemgetter(name), keys=(name,)) for name in ("low", "high")]


def _shown(name: str) -> Callable[[Row], str]:
    scale, digits = (100, 0) if name == "dead" else (1, 3)

    def show(row: Row) -> str:
        mean, sd = (None if value is None else scale * value for value in (row[name], row.get(f"{name}_sd")))
        return plus_minus(mean, sd, digits)

    return show


def _headline(table: Sequence[Row], dead: float) -> str:
    """Say what stands out, in a sentence for each kind."""
    sentences = []
    for kind, title in _KINDS.items():
        rows = [row for row in table if row["kind"] == kind]
        if rows:
            low, high = (f(row["mean"] for row in rows) for f in (min, max))
            least, most = (f(row["dead"] for row in rows) for f in (min, max))
            sentences.append(
                f"{title}: {fixed(low)} to {fixed(high)} in the mean of a stage; {100 * least:.0f} to "
                f"{100 * most:.0f}% of them vary by less than {dead:g} over images."
            )
    return " ".join(sentences) or "No weights were seen."


def _pictures(table: Sequence[Row]) -> list[Picture]:
    several = len({row["data"] for row in table}) > 1
    labels = {
        (row["data"], row["network"]): f"{row['network']}, {row['data']}" if several else row["network"]
        for row in table
    }
    looks = looks_of(dict.fromkeys(labels.values()))
    found = []
    with drawing():
        for kind, title in _KINDS.items():
            rows = [dict(row, label=labels[row["data"], row["network"]]) for row in table if row["kind"] == kind]
            if not rows:
                continue
            words = "; ".join(
                f"{row['label']}, {row['stage']}: {fixed(row['mean'], 3)}, within an image ± {fixed(row['within'], 3)}"
                for row in rows
            )
            found.append(
                picture_of(
                    _draw(rows, looks, title),
                    f"{kind}-weights",
                    f"{title} by stage",
                    f"{words}.",
                    "Marker: mean over images and weights. Bar: one standard deviation of the weights of one image to "
                    "either side. Dotted: 1/2, where an untrained sigmoid is, and 1, where attention changes nothing.",
                    Table(f"{kind}-numbers", f"{title} by stage.", gate_tables(rows, [])[0].columns, rows),
                )
            )
    return found


def _draw(rows: Sequence[Row], looks: Mapping[str, Look], title: str) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415  takes seconds

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    for level in (0.5, 1.0):
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    for number, label in enumerate(labels):
        own = [row for row in rows if row["label"] == label]
        # Beside each other, so that bars do not hide bars.
        places = [stages.index(row["stage"]) + 0.6 * ((number + 0.5) / len(labels) - 0.5) for row in own]
        look = looks[label]
        means, within = [row["mean"] for row in own], [row["within"] for row in own]
        style: dict[str, Any] = {"color": look.colour, "marker": look.marker, "markersize": 6, "linewidth": 1}
        axes.errorbar(places, means, within, linestyle=look.linestyle, elinewidth=1.4, **style)
    axes.set_xticks(range(len(stages)), stages)
    axes.set_ylim(min(0.0, *(row["mean"] - row["within"] for row in rows)), None)
    axes.grid(axis="x", visible=False)
    axes.set(title=title, ylabel="weight")
    add_legend(figure, labels, looks, lines=True)
    return figure
