"""Names in any script: a font that has the letters, else codes and one warning for all letters of a script."""

import io
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from csham import fonts
from csham.fonts import drawable, families, fitted, legible

CAT = "\u732b"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with matplotlib's own fonts alone; called with a path, with this font too."""
    own = [entry for entry in font_manager.fontManager.ttflist if "mpl-data" in entry.fname]

    def install(*paths):
        monkeypatch.setattr(font_manager.fontManager, "ttflist", list(own))
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in paths])
        forget()

    install()
    yield install
    forget()


def forget():
    for known in (fonts._family_of, fonts._letters_of, fonts._others):
        known.cache_clear()
    fonts._needed.clear()
    fonts._warned.clear()


def write_font(path, letters, family="Cat Sans"):
    """A font whose every letter is a filled square."""
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    pen = TTGlyphPen(None)
    for number, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"u{ord(letter):x}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def picture(text, **how):
    figure = Figure(figsize=(3, 1))
    axes = figure.add_subplot()
    axes.set_xticks([0.5], labels=[text])
    axes.set_title(text)
    content = io.BytesIO()
    with legible(figure, **how):
        figure.savefig(content, format="svg" if how else "png", dpi=60)
    return content.getvalue(), figure


@pytest.mark.parametrize("text", ["cat", "кошка", "قطة", "חתול", "γάτα", "\N{GRINNING FACE}"])
def test_what_matplotlibs_own_font_has_needs_no_other(text):
    assert families(text) == ["DejaVu Sans"]
    assert drawable(text) == text


def test_a_font_of_this_machine_is_found_for_what_it_lacks(machine, tmp_path):
    machine(write_font(tmp_path / "cat.ttf", CAT), tmp_path / "not there.ttf")
    assert families(f"a {CAT}") == ["DejaVu Sans", "Cat Sans"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawable(f"a {CAT}") == f"a {CAT}"
        drawn, figure = picture(CAT)
    assert figure.axes[0].get_title() == CAT
    machine()
    with pytest.warns(UserWarning, match="no font"):
        coded, _ = picture(CAT)
    assert not np.array_equal(*(np.asarray(Image.open(io.BytesIO(content))) for content in (drawn, coded)))


def test_letters_that_no_font_has_become_codes_with_one_warning_for_their_script():
    with pytest.warns(
        UserWarning, match=r"such as Noto Sans CJK \(on Debian and Ubuntu the package fonts-noto-cjk"
    ) as caught:
        assert drawable(f"{CAT}\u72ac \u3042") == r"\u732b\u72ac \u3042"
    with pytest.warns(UserWarning, match="such as Noto Sans Devanagari"):
        assert drawable("\u0939") == r"\u0939"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawable(CAT) == r"\u732b"
        picture(CAT)  # nor does matplotlib warn of each letter


def test_an_uncommon_form_of_a_common_letter_needs_no_code():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drawable("\uff21\uff11") == "A1"
        assert drawable("a\u200db\u3000c\U000e0101") == "a\u200db c"


def test_a_font_of_stand_ins_is_none(machine, tmp_path):
    machine(write_font(tmp_path / "last.ttf", CAT, "Last Resort"))
    assert families(CAT) == ["DejaVu Sans"]


def test_a_damaged_font_is_passed_over(machine, tmp_path):
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    machine(tmp_path / "bad.ttf", write_font(tmp_path / "cat.ttf", CAT))
    assert families(CAT) == ["DejaVu Sans", "Cat Sans"]


def test_a_picture_that_holds_text_keeps_it_for_whoever_has_the_font():
    from matplotlib import rc_context

    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none"}):
        warnings.simplefilter("error")
        content, figure = picture(CAT, codes=False)
    assert content.decode().count(f">{CAT}<") == 2
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [CAT]


def test_a_family_without_a_bold_font_is_taken_as_it_is_without_a_word(machine, tmp_path, caplog):
    machine(write_font(tmp_path / "cat.ttf", CAT))
    assert fitted(CAT * 50, 1, weight="bold").endswith("…")
    figure = Figure(figsize=(2, 1))
    figure.text(0, 0, CAT, weight="bold")
    with legible(figure):
        figure.savefig(io.BytesIO(), format="png")
    assert not caplog.records
