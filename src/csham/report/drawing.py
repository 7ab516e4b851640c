"""Style of a report's drawings: each network's look, and figures of matplotlib as files and as parts of a page.

A network is told apart by colour, by line and by marker. Figures are drawn in the light colours; in a page each becomes
a CSS variable, so that dark mode can change it. In a page text is text, and every id is the figure's own.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csham.fonts import legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GOOD",
    "INK",
    "MUTED",
    "PAPER",
    "Look",
    "drawing",
    "inline_svg",
    "looks_of",
    "png_bytes",
    "svg_bytes",
]

# Okabe and Ito's hues, made dark enough for lines on white (3:1 at least), and light ones for a dark page.
COLOURS: tuple[tuple[str, str], ...] = (
    ("#0072b2", "#5bb8f0"),  # blue
    ("#c24e00", "#ff8f4d"),  # vermilion
    ("#00805d", "#2fd3a2"),  # green
    ("#a8478a", "#ea9fcd"),  # purple
    ("#8a6200", "#eec12b"),  # ochre
    ("#4f55c8", "#a9adff"),  # indigo
    ("#007d8a", "#4cd3e0"),  # teal
)
INK = "#1b1f24"
MUTED = "#59626c"
RULE = "#dfe3e6"
PAPER = "#fefefe"
GOOD = "#e3f1ea"

# Names of the page's style sheet for what is not a network's own colour.
_SHARED = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)", GOOD: "var(--good)"}

_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p")
_DASHES = ((6, 2), (2, 1.6), (7, 2, 2, 2), (4, 1.5, 1, 1.5, 1, 1.5), (9, 3), (3, 3))


_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "csham",
    "text.parse_math": False,  # names are third-party text, and may have $ in them
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
}


@dataclass(frozen=True)
class Look:
    """One network's.

    Attributes:
        colour: On white.
        marker: As matplotlib names it.
        dashes: Lengths of strokes and gaps in points; empty for a solid line.
        filled: True if the marker is filled.
        width: Of its line in points.
    """

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()
    filled: bool = True
    width: float = 1.6

    @property
    def variable(self) -> str:
        """The colour in a page."""
        return _css_variables()[self.colour]

    @property
    def linestyle(self) -> str | tuple[float, tuple[float, ...]]:
        """The dashes, as matplotlib takes them, in units of points rather than line widths."""
        return (0, tuple(length / self.width for length in self.dashes)) if self.dashes else "-"


_PLAIN = Look(INK, "o", width=2.2)


def looks_of(names: Iterable[str], plain: Iterable[str] = (), controls: Iterable[str] = ()) -> dict[str, Look]:
    """Give each name its look, in their order: up to 126 differ in colour, line or marker.

    Args:
        names: Everything that is to be told apart.
        plain: Those of them that are drawn in ink with a solid line.
        controls: Those of them whose markers are hollow.
    """
    plain, controls = set(plain), set(controls)
    looks: dict[str, Look] = {}
    for name in names:
        number = sum(look is not _PLAIN for look in looks.values())
        looks[name] = (
            _PLAIN
            if name in plain
            else Look(
                COLOURS[number % len(COLOURS)][0],
                _MARKERS[number % len(_MARKERS)],
                _DASHES[number % len(_DASHES)],
                name not in controls,
            )
        )
    return looks


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the report's style, the same bytes for the same numbers."""
    from matplotlib import rc_context  # noqa: PLC0415  takes seconds

    with rc_context(_SETTINGS):
        yield


def svg_bytes(figure: Figure, *, transparent: bool = False) -> bytes:
    """Return a figure as an SVG file, without the date."""
    content = io.BytesIO()
    with legible(figure, codes=False):
        figure.savefig(content, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    return content.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file at 200 dots per inch."""
    content = io.BytesIO()
    with legible(figure):
        figure.savefig(content, format="png", dpi=200, metadata={"Software": None})
    return content.getvalue()


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return a figure as an element of a page.

    Args:
        figure: Drawn in the colours of :mod:`csham.report.drawing`.
        name: Begins every id in it; unique within the page.
        title: Name of the picture, for those who do not see it.
        description: Text on what it shows, with the numbers.
    """
    root = ET.fromstring(svg_bytes(figure, transparent=True))  # noqa: S314  matplotlib's own output
    for parent in root.iter():
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)  # names addresses on the web
    width = float(str(root.get("width")).removesuffix("pt"))
    for element in root.iter():
        _plain_names(element)
        for key, value in element.attrib.items():
            element.set(key, _own(key, value, name))
    _describe(root, name, title, description)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("style", f"max-width: {width * 1.7:.0f}px")
    return ET.tostring(root, encoding="unicode")


def _plain_names(element: ET.Element) -> None:
    """Take the namespaces off, which a page's parser knows by itself."""
    element.tag = element.tag.rpartition("}")[2]
    for key in [key for key in element.attrib if "}" in key]:
        element.set(key.rpartition("}")[2], element.attrib.pop(key))


def _own(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _css_variables().get(colour[0], colour[0]), value)


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(kind, {"id": f"{name}-{kind}"})
        element.text = text
        root.insert(place, element)


def _css_variables() -> Mapping[str, str]:
    """Return what each colour of a figure is called in a page."""
    return _SHARED | {light: f"var(--c{number})" for number, (light, _) in enumerate(COLOURS)}
