"""Tables become files that read back equal, in which no name is a formula, a tag or a command."""

import csv
import io

import pytest

from csham.report.tables import Column, Table, csv_bytes, latex_bytes, markdown_bytes, xlsx_bytes

NAMES = [
    "plain",
    "=cmd()",
    "+1",
    "-1",
    "@sum",
    "\tx",
    "a|b",
    "50% & $x_1$ #~^\\{}",
    "<b>",
    "[0]",
    "*",
    "two\nlines",
    "猫",
]


def table(names=NAMES):
    columns = [
        Column("name", lambda name: name, keys=("name",), numeric=False),
        Column("top-1, %", lambda _: -1 / 3, lambda _: "\N{MINUS SIGN}1.50 ± 0.10", ("top1",)),
        Column("", lambda _: 3, keys=("seeds",)),
        Column("", lambda _: None, keys=("missing",)),
    ]
    return Table("names", "All of 100% names.", columns, names)


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(csv_bytes(table()).decode(), newline="")))
    assert [row["name"].removeprefix("'") for row in rows] == NAMES
    assert {(float(row["top1"]), row["seeds"], row["missing"]) for row in rows} == {(-1 / 3, "3", "")}


@pytest.mark.parametrize("name", NAMES)
def test_csv_holds_no_formula(name):
    [row] = list(csv.DictReader(io.StringIO(csv_bytes(table([name])).decode(), newline="")))
    assert not row["name"].startswith(("=", "+", "-", "@", "\t", "\r"))


def workbook(tables):
    return pytest.importorskip("openpyxl").load_workbook(io.BytesIO(xlsx_bytes(tables)))


def test_xlsx_reads_back_without_formulas():
    book = workbook([table()])
    head, *rows = book["names"].iter_rows()
    assert [cell.value for cell in head] == ["name", "top1", "seeds", "missing"]
    assert [row[0].value for row in rows] == NAMES
    assert {row[0].data_type for row in rows} == {"s"}
    assert {(row[1].value, row[2].value, row[3].value) for row in rows} == {(-1 / 3, 3, None)}


def test_xlsx_has_columns_as_wide_as_their_heads_within_limits():
    widths = {"k" * 9: 12, "k" * 10: 12, "k" * 11: 13, "k" * 37: 39, "k" * 38: 40, "k" * 39: 40}
    columns = [Column("", lambda _: 1, keys=(key,)) for key in widths]
    sheet = workbook([Table("widths", "", columns, [None])])["widths"]
    assert {cell.value: sheet.column_dimensions[cell.column_letter].width for cell in sheet[1]} == widths


def test_xlsx_takes_characters_that_excel_does_not():
    book = workbook([table(["a\x00b"])])
    assert book["names"]["A2"].value == "a\N{REPLACEMENT CHARACTER}b"


def test_xlsx_knows_no_hour(monkeypatch):
    pytest.importorskip("openpyxl")
    first = xlsx_bytes([table()])
    monkeypatch.setattr("time.localtime", lambda *_: (2030, 1, 2, 3, 4, 5, 0, 0, 0))
    assert xlsx_bytes([table()]) == first


def test_latex():
    lines = latex_bytes(table()).decode().splitlines()
    assert lines[0] == "% All of 100% names."
    assert lines[2] == r"\begin{tabular}{lr}"
    assert lines[-1] == r"\end{tabular}"
    body = lines[6:-2]
    assert len(body) == len(NAMES)
    assert r"50\% \& \$x\_1\$ \#\textasciitilde{}\textasciicircum{}\textbackslash{}\{\} & $-$1.50 $\pm$ 0.10 \\" in body
    assert {line.replace(r"\&", "").count("&") for line in body} == {1}
    # After the \\ of the row before, [ and * would be read as its argument.
    assert not [line for line in body if line.startswith(("[", "*"))]


def test_markdown():
    head, rule, *rows = markdown_bytes(table()).decode().splitlines()[: 2 + len(NAMES)]
    assert (head, rule) == ("| name | top-1, % |", "| --- | ---: |")
    assert rows[NAMES.index("a|b")].startswith(r"| a\|b |")
    assert rows[NAMES.index("<b>")].startswith(r"| \<b\> |")
    assert rows[NAMES.index("two\nlines")].startswith("| two lines |")


def test_a_surrogate_does_not_stop_the_writing():
    odd = table(["bad\udcff"])
    for write in (csv_bytes, markdown_bytes, latex_bytes):
        assert b"bad?" in write(odd)
