"""Letters of any script in pictures: fonts of this machine that have them, and codes in place of what none has.

Names of classes, files and networks are third-party text. matplotlib draws what its own font has, DejaVu Sans, which is
Latin, Greek, Cyrillic, Arabic, Hebrew and a few more, and falls back on further families where it is told of them.
"""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawable", "families", "fitted", "legible"]

OWN = "DejaVu Sans"  # comes with matplotlib

# Fonts that have a glyph for every letter, which shows the letter's block, or nothing.
_STAND_INS = re.compile(r"last ?resort|blank|notdef", re.IGNORECASE)

# Control characters but white space, and what is no letter: XML holds none of them, and no font draws them.
_NO_LETTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def families(text: str) -> list[str]:
    """Name the font families that a text is to be drawn with: matplotlib's own, then others for letters it lacks."""
    found = (_family_of(letter) for letter in text if not _is_unseen(letter))
    return list(dict.fromkeys([OWN, *filter(None, found)]))


def drawable(text: str) -> str:
    """Return a text with codes, as Python writes them, for letters that no font of this machine has, or none could.

    Warns once of each script of such letters, with what to install.
    """
    return "".join(map(_drawn, _coded(text)))


def fitted(text: str, width: float, size: float = 7.5, weight: str = "normal", *, keep: str = "start") -> str:
    """Shorten a text to a width, with an ellipsis in place of what is cut.

    Args:
        text: Anything; line breaks become spaces, letters that no font has become codes.
        width: In inches.
        size: Of the font, in points.
        weight: Of the font.
        keep: Of which end something is left: ``"start"`` or ``"end"``, whole folders of a path where they fit.
    """
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415
    from matplotlib.textpath import TextToPath  # noqa: PLC0415

    text = " ".join(text.encode("utf-8", "replace").decode().split())  # file names may hold bytes of no encoding
    text = drawable(text)
    font, measure = FontProperties(family=families(text), size=size, weight=weight), TextToPath()

    def fits(candidate: str) -> bool:
        with _without_notes_on_weights():
            return bool(measure.get_text_width_height_descent(candidate, font, ismath=False)[0] <= 72 * width)

    if fits(text):
        return text
    letters = range(len(text))
    if keep == "start":
        # The first that is too long, by bisection: each further letter makes a text wider.
        return text[: max(bisect_left(letters, True, key=lambda count: not fits(text[:count] + "…")) - 1, 0)] + "…"
    folders = (text[place + 1 :] for place, letter in enumerate(text) if letter in "/\\")
    whole = next(filter(fits, folders), None)
    return whole or "…" + text[bisect_left(letters, True, key=lambda start: fits("…" + text[start:])) :]


@contextmanager
def legible(figure: Figure, *, codes: bool = True) -> Iterator[None]:
    """Draw a figure's texts in fonts that have their letters, while this lasts; afterwards they are as they were.

    Args:
        figure: All of its texts are there.
        codes: Write codes for letters that no font has; else they are kept, for a file that holds text as text. Control
            characters become codes in any case.
    """
    from matplotlib.text import Text  # noqa: PLC0415  takes a second
    from matplotlib.ticker import LogFormatter, ScalarFormatter  # noqa: PLC0415

    formatters = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not isinstance(axis.get_major_formatter(), (LogFormatter, ScalarFormatter)):  # any font has numbers
            formatters.append(axis.get_major_formatter())
            axis.get_ticklabels()  # makes them, which takes as long as drawing them
    write = drawable if codes else _coded
    texts = [text for text in figure.findobj(Text) if not _is_plain(text.get_text())]
    before = [(text, text.get_text(), text.get_fontfamily()) for text in texts]
    try:
        for text, words, _ in before:
            text.set_fontfamily(families(words))
            text.set_text(write(words))
        for one in formatters:  # drawing writes the labels of ticks anew
            vars(one)["format_ticks"] = partial(_formatted, one.format_ticks, write)
        with warnings.catch_warnings(), _without_notes_on_weights():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            yield
    finally:
        for text, words, family in before:
            text.set_text(words)
            text.set_fontfamily(family)
        for one in formatters:
            vars(one).pop("format_ticks", None)


@contextmanager
def _without_notes_on_weights() -> Iterator[None]:
    """Keep matplotlib from logging that a family has no bold font, and which it takes instead."""
    logger = logging.getLogger("matplotlib.font_manager")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _formatted(format_ticks: Callable[[Any], list[str]], write: Callable[[str], str], places: Any) -> list[str]:
    return [write(label) for label in format_ticks(places)]


def _is_plain(text: str) -> bool:
    return text.isascii() and not _NO_LETTERS.search(text)


def _coded(text: str) -> str:
    return _NO_LETTERS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def _is_unseen(letter: str) -> bool:
    """Return True for spaces, and signs that only change how others are drawn."""
    return letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf") or "VARIATION SELECTOR" in _name(letter)


def _drawn(letter: str) -> str:
    if letter.isascii():
        return letter
    if _is_unseen(letter):
        return letter if _family_of(letter) else " " if letter.isspace() else ""
    if _family_of(letter):
        return letter
    plain = unicodedata.normalize("NFKC", letter)  # such as letters of full width
    if plain != letter and all(one.isascii() or _family_of(one) for one in plain):
        return plain
    _warn(_script(letter), letter)
    return letter.encode("unicode_escape").decode()


def _name(letter: str) -> str:
    return unicodedata.name(letter, "")


def _script(letter: str) -> str:
    """Name the script of a letter as names of fonts do."""
    first = _name(letter).partition(" ")[0]
    if first in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"):
        return "CJK"
    return first.capitalize() if unicodedata.category(letter)[0] in "LM" else "Symbols"


# Fonts for scripts whose names are not those of fonts, and Debian's packages.
_TO_INSTALL = {"CJK": ("Noto Sans CJK", "fonts-noto-cjk"), "Symbols": ("Symbola", "fonts-symbola")}


def _warn(script: str, letter: str) -> None:
    if script in _warned:
        return
    _warned.add(script)
    font, package = _TO_INSTALL.get(script, (f"Noto Sans {script}", "fonts-noto-core"))
    warnings.warn(
        f"no font of this machine has {letter!a} ({_name(letter).lower() or 'a letter of private use'}) and others of "
        f"its kind: pictures show their codes instead. Install a font that has them, such as {font} (on Debian and "
        f"Ubuntu the package {package}).",
        stacklevel=2,
    )


_warned: set[str] = set()


@cache
def _family_of(letter: str) -> str | None:
    """Name the first family that has a letter, those that were needed before going first."""
    if ord(letter) in _letters_of(OWN):
        return OWN
    for family in [*_needed, *(name for name in _others() if name not in _needed)]:
        if ord(letter) in _letters_of(family):
            _needed.setdefault(family)
            return family
    return None


_needed: dict[str, None] = {}


@cache
def _letters_of(family: str) -> frozenset[int]:
    """Return the code points that a family's regular font has; none if it cannot be opened or drawn at any size."""
    from matplotlib.font_manager import fontManager, get_font  # noqa: PLC0415

    entries = [entry for entry in fontManager.ttflist if entry.name == family]
    try:
        font = get_font(min(entries, key=lambda entry: (entry.style != "normal", entry.weight != 400)).fname)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except Exception:  # whatever a damaged font makes of it
        return frozenset()


@cache
def _others() -> list[str]:
    """Name the families of this machine, those first that look like matplotlib's own."""
    from matplotlib.font_manager import findSystemFonts, fontManager  # noqa: PLC0415

    # matplotlib lists fonts once and keeps the list: those that were installed since are added.
    for path in set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}:
        with suppress(Exception):  # damaged, or of pixels
            fontManager.addfont(path)
    names = {entry.name for entry in fontManager.ttflist} - {OWN}
    return sorted(filter(lambda name: not _STAND_INS.search(name), names), key=_rank)


def _rank(name: str) -> tuple[Any, ...]:
    rough = any(word in name for word in ("Unifont", "Bitmap", "Mono", "Serif"))
    return rough, "Sans" not in name and "Gothic" not in name, name
