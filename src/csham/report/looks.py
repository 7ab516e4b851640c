"""Look of each network in every figure and legend of a report: told apart by colour, by line and by marker.

Figures are drawn in the light colours; in a page each becomes a CSS variable, so that dark mode can change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["COLOURS", "GOOD", "INK", "MUTED", "PAPER", "RULE", "Look", "css_variables", "looks_of"]

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
        return css_variables()[self.colour]

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


def css_variables() -> Mapping[str, str]:
    """Return what each colour of a figure is called in a page."""
    return _SHARED | {light: f"var(--c{number})" for number, (light, _) in enumerate(COLOURS)}
