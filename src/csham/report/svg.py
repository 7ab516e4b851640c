"""Drawings of matplotlib as parts of a page: their text is text, their colours the page's, their ids their own."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from csham.report.looks import INK, MUTED, PAPER, RULE, css_variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawing", "inline_svg", "png_bytes", "svg_bytes"]

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


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in the report's style, the same bytes for the same numbers."""
    from matplotlib import rc_context  # noqa: PLC0415  takes seconds

    with rc_context(_SETTINGS):
        yield


def svg_bytes(figure: Figure, *, transparent: bool = False) -> bytes:
    """Return a figure as an SVG file, without the date."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", transparent=transparent, metadata={"Date": None, "Creator": None})
    return content.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """Return a figure as a PNG file at 200 dots per inch."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200, metadata={"Software": None})
    return content.getvalue()


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return a figure as an element of a page.

    Args:
        figure: Drawn in the colours of :mod:`csham.report.looks`.
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
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: css_variables().get(found[0], found[0]), value)


def _describe(root: ET.Element, name: str, title: str, description: str) -> None:
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(kind, {"id": f"{name}-{kind}"})
        element.text = text
        root.insert(place, element)
