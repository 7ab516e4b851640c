"""The tables and the picture of docs/kernels.md, from rows of attention_cost.py, network_tax.py and gpu_compile.py.

    python benchmarks/attention_figure.py --markdown    # prints the tables
    python benchmarks/attention_figure.py --write       # puts them into the page, and draws its picture

Of rows measured twice the last one counts. The picture plots the time of a pass against the time that its unavoidable
reads and writes would take at the speed of a copy; a pass that does nothing else lies on the line.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from record import latest_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/kernels.md"
PICTURE = ROOT / "docs/images/attention_cost.png"
DEVICE = "cpu"

Row = dict[str, str]


@dataclass(frozen=True)
class Series:
    """One attention run in one way, and how its points look; told apart by shape and shade, without colours.

    Attributes:
        label: In the legend and in the tables.
        op: Column ``op``.
        implementations: Column ``implementation``, any of these.
        compiled: Column ``compiled``.
        marker: Of matplotlib; empty for series that only the tables have.
        shade: What the marker is filled with, of matplotlib.
    """

    label: str
    op: str
    implementations: tuple[str, ...]
    compiled: bool
    marker: str = ""
    shade: str = "white"

    def holds(self, row: Row) -> bool:
        """Whether a row belongs to it."""
        same = row["op"] == self.op and row["implementation"] in self.implementations
        return same and row.get("compiled", str(self.compiled)) == str(self.compiled)


KERNELS = ("cpu", "triton")
SERIES = (
    Series("CSHAM, kernels", "csham", KERNELS, False, "o", "black"),
    Series("CSHAM, kernels, compiled", "csham", KERNELS, True),
    Series("channel step, kernels", "csham_channel", KERNELS, False),
    Series("spatial step, kernels", "csham_spatial", KERNELS, False),
    Series("spatial step on borrowed weights, kernels", "csham_borrowing", KERNELS, False),
    Series("CSHAM, plain PyTorch", "csham", ("reference",), False, "s"),
    Series("CSHAM, plain PyTorch, compiled", "csham", ("reference",), True, "s", "0.6"),
    Series("CBAM, timm", "cbam", ("timm",), False),
    Series("CBAM, timm, compiled", "cbam", ("timm",), True, "^", "0.6"),
    Series("CBAM, kernels", "cbam", KERNELS, False, "^", "black"),
    Series("SE, timm", "se", ("timm",), False),
    Series("SE, timm, compiled", "se", ("timm",), True, "D", "0.6"),
    Series("SE, kernels", "se", KERNELS, False, "D", "black"),
    Series("ECA, timm", "eca", ("timm",), False),
    Series("ECA, timm, compiled", "eca", ("timm",), True, "v", "0.6"),
    Series("ECA, kernels", "eca", KERNELS, False, "v", "black"),
)
# Of network_tax.py.
VARIANTS = {
    "transfer": "CSHAM `transfer`, kernels",
    "sequential": "CSHAM `sequential`, kernels",
    "eca": "ECA, kernels",
    "se": "SE, kernels",
    "cbam": "CBAM, kernels",
    "timm_eca": "ECA, timm",
    "timm_se": "SE, timm",
    "timm_cbam": "CBAM, timm",
    "plain_transfer": "CSHAM `transfer`, plain PyTorch",
    "plain_sequential": "CSHAM `sequential`, plain PyTorch",
}
PANELS = (("inference", "inference"), ("forward", "forward, in training"), ("forward_backward", "forward and backward"))
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Parse; print or write."""
    args = _parser().parse_args()
    found = tables()
    if args.markdown:
        print(*found.values(), sep="\n")
        return
    page = PAGE.read_text(encoding="utf-8")
    for name, table in found.items():
        page = with_table(page, name, table)
    PAGE.write_text(page, encoding="utf-8")
    draw(PICTURE, cost_rows())
    print("wrote", PAGE, "and", PICTURE)


def with_table(page: str, name: str, table: str) -> str:
    """Replace what stands between the comments of ``name`` in the page."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    new, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}{table}{end}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE}: expected one place for the table, between {begin.strip()} and {end}, found {count}.")
    return new


def tables() -> dict[str, str]:
    """Return every table of the page, by the name of its place."""
    rows = cost_rows()
    costs = (_cost_table([row for row in rows if row["dtype"] == dtype], dtype) for dtype in DTYPES)
    return {
        "attention cost": "\n".join(table for table in costs if table),
        "attention memory": _memory_table(),
        "network tax": _tax_tables(),
        "gpu launches": _launch_tables(),
    }


def cost_rows() -> list[Row]:
    """Return the rows of attention_cost.py, measured on the CPU with memory retained."""
    keys = ("op", "shape", "dtype", "memory_format", "implementation", "compiled", "direction", "retained", "device")
    rows = latest_rows("attention_cost", keys)
    return [row for row in rows if row["retained"] == "True" and row["device"] == DEVICE]


def _cost_table(rows: Sequence[Row], dtype: str) -> str:
    """Lay out forward / forward and backward in copies, a column for each shape and layout."""
    settings = list(dict.fromkeys((row["shape"], row["memory_format"]) for row in rows))
    if not settings:
        return ""
    copies = {_setting(row): row for row in rows if row["op"] == "copy"}
    lines = _head(dtype, [f"{shape.replace('x', ', ')} {layout}" for shape, layout in settings])
    lines.append(_line("a copy, ms", [_number(copies[setting]["median_ms"]) for setting in settings]))
    for series in SERIES:
        mine = {(_setting(row), row["direction"]): row["copies"] for row in rows if series.holds(row)}
        if mine:
            pairs = ((mine.get((s, "forward")), mine.get((s, "forward_backward"))) for s in settings)
            lines.append(_line(series.label, [f"{_number(a)} / {_number(b)}" for a, b in pairs]))
    return "\n".join(lines) + "\n"


def _memory_table() -> str:
    """Lay out what is kept for the backward pass, in maps, at the layout that came first."""
    rows = latest_rows("attention_memory", ("op", "shape", "dtype", "memory_format", "implementation", "device"))
    rows = [row for row in rows if row["memory_format"] == rows[0]["memory_format"] and row["device"] == DEVICE]
    settings = list(dict.fromkeys((row["shape"], row["dtype"]) for row in rows))
    if not settings:
        return ""
    lines = _head("maps kept", [f"{shape.replace('x', ', ')} {dtype}" for shape, dtype in settings])
    for series in (one for one in SERIES if not one.compiled):
        mine = {(row["shape"], row["dtype"]): row["kept_maps"] for row in rows if series.holds(row)}
        if mine:
            lines.append(_line(series.label, [_number(mine.get(setting)) for setting in settings]))
    return "\n".join(lines) + "\n"


def _tax_tables() -> str:
    """Lay out training step / inference relative to the plain network, by precision, a column for each network."""
    keys = ("network", "image_size", "batch_size", "variant", "kernels", "pass", "precision", "compiled", "device")
    rows = [row for row in latest_rows("network_tax", keys) if row["device"] == DEVICE and row["compiled"] == "True"]
    precisions = dict.fromkeys(row["precision"] for row in rows)
    return "\n".join(_tax_table([row for row in rows if row["precision"] == one]) for one in precisions)


def _tax_table(rows: Sequence[Row]) -> str:
    networks = list(dict.fromkeys(_network(row) for row in rows))
    how = f"{rows[0]['precision']}, compiled"
    lines = _head(how, [f"{name}, {size} px, batch {batch}" for name, size, batch in networks])
    for variant, label in VARIANTS.items():
        ratios = {(_network(row), row["pass"]): row["ratio"] for row in rows if row["variant"] == variant}
        if ratios:
            pairs = ((ratios.get((one, "training")), ratios.get((one, "inference"))) for one in networks)
            lines.append(_line(label, [f"{_number(a)} / {_number(b)}" for a, b in pairs]))
    return "\n".join(lines) + "\n"


def _launch_tables() -> str:
    """Lay out the launches of a training step on a GPU, a table for each layout, and what they move together."""
    keys = ("layout", "number", "shape", "dtype", "architecture", "commit", "date")
    tables: dict[str, list[Row]] = {}
    for row in latest_rows("gpu_compile", keys):
        if row["shape"] == "64,256,56,56":
            if row["number"] == "1":  # the count may be less than it was
                tables[row["layout"]] = []
            tables[row["layout"]].append(row)
    return "\n".join(map(_launch_table, tables.values()))


def _launch_table(rows: Sequence[Row]) -> str:
    one = rows[0]
    head = f"{one['shape'].replace(',', ', ')} {one['dtype']}, {one['layout']}"
    lines = _head(head, ["pass", "programs", "MB", "registers", "bytes spilled"])
    columns = ("part", "programs", "megabytes", "registers", "spilled_bytes")
    lines += [_line(f"`{row['launch']}`", [row[name] or "-" for name in columns]) for row in rows]
    map_ = math.prod(map(int, one["shape"].split(","))) * (4 if one["dtype"] == "float32" else 2) / 1e6
    for part in ("forward", "backward"):
        mine = [float(row["megabytes"]) for row in rows if row["part"] == part]
        together = f"{sum(mine):.1f}, {_number(str(sum(mine) / map_ / 2))} copies"
        lines.append(_line(f"**{len(mine)} launches**", [part, "", together, "", ""]))
    return "\n".join(lines) + "\n"


def _network(row: Row) -> tuple[str, str, str]:
    return row["network"], row["image_size"], row["batch_size"]


def _setting(row: Row) -> tuple[str, str]:
    return row["shape"], row["memory_format"]


def _number(text: str | None) -> str:
    if text is None:
        return "-"
    value = float(text)
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _head(corner: str, columns: Iterable[str]) -> list[str]:
    cells = list(columns)
    return [_line(corner, cells), "|" + "---|" * (len(cells) + 1)]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw time against the least time, a panel for each direction and dtype, a marker for each attention.

    Args:
        path: The picture, a PNG.
        rows: As :func:`cost_rows` returns them, at least one.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  takes seconds

    if not rows:
        raise SystemExit("there are no rows yet: run benchmarks/attention_cost.py first.")
    directions = [(name, title) for name, title in PANELS if any(row["direction"] == name for row in rows)]
    figure = Figure(figsize=(1 + 3.7 * len(directions), 5.2), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False, sharey=True)[0]
    for axes, (direction, title) in zip(panels, directions, strict=True):
        _draw_panel(axes, rows, direction)
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("measured, ms", fontsize=9)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"One attention on {rows[-1]['threads']} threads of {rows[-1]['processor']}", fontsize=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_panel(axes: Axes, rows: Sequence[Row], direction: str) -> None:
    copy_ms = {_key(row): float(row["median_ms"]) for row in rows if row["op"] == "copy"}
    mine = [row for row in rows if row["direction"] == direction and row["op"] not in ("copy", "clone")]
    ends: list[float] = []
    for series in (one for one in SERIES if one.marker):
        points = [
            (float(row["floor_copies"]) * copy_ms[_key(row)], float(row["median_ms"]))
            for row in mine
            if series.holds(row)
        ]
        ends += [x for x, _ in points]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                series.marker,
                color=series.shade,
                markeredgecolor="black",
                markeredgewidth=0.7,
                markersize=6,
                linestyle="none",
                label=series.label,
            )
    if ends:
        line = [0.8 * min(ends), 1.25 * max(ends)]
        axes.plot(line, line, "-", color="black", linewidth=1.2, label="floor: nothing but the copy's bytes", zorder=0)
        axes.plot(line, [10 * x for x in line], ":", color="black", linewidth=1, label="ten times the floor", zorder=0)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("bytes needed, at the speed of a copy, ms", fontsize=9)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _key(row: Row) -> tuple[str, str, str]:
    return row["shape"], row["dtype"], row["memory_format"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--markdown", action="store_true", help="print the tables")
    what.add_argument("--write", action="store_true", help="put the tables into the page and draw the picture")
    return parser


if __name__ == "__main__":
    main()
