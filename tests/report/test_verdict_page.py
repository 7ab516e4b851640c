from __future__ import annotations

import csv
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

import csham
from csham.errors import UserError
from csham.report.verdict_page import write_verdict


def _table(gain: float = 0.012) -> list[dict[str, object]]:
    chance = random.Random(0)
    rows = []
    for group in ("a", "b"):
        for seed in range(6):
            base = 0.5 + chance.gauss(0, 0.004)
            for name, more in (("plain", 0.0), ("<b>gate</b>", gain), ("=cbam", 0.0)):
                value = base + more + chance.gauss(0, 0.0015)
                rows.append({"name": name, "seed": seed, "set": group, "map": value, "loss": 2 - value / 100})
    return rows


def _verdict(**options: object) -> csham.study.verdict.TableVerdict:
    words = {"metric": ["map", "loss"], "groups": "set", "lower_is_better": "loss"}
    return csham.verdict(_table(), **words | {"worthwhile": {"map": 0.5, "loss": 0.00005}} | options)


def test_the_page_says_what_the_verdicts_are(tmp_path: Path):
    result = _verdict()

    page = write_verdict(result, tmp_path / "page")

    text = page.read_text()
    assert "&lt;b&gt;gate&lt;/b&gt; helps a" in text
    assert "<b>gate" not in text
    assert text.count("<figure") == 2
    assert "Holm's correction for the 8 comparisons" in text
    assert "of the plain network of its backbone" not in text
    for note in result.notes:
        assert note in text
    with (tmp_path / "page/tables/verdicts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == [c.verdict for one in result.metrics for c in one.comparisons]
    assert float(rows[0]["difference"]) == result.metrics[0].comparisons[0].mean
    assert rows[1]["variant"] == "'=cbam"
    with (tmp_path / "page/tables/runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(_table())


def test_small_gains_are_shown_with_the_decimals_they_need(tmp_path: Path):
    text = write_verdict(_verdict(), tmp_path).read_text()

    gain = _verdict().metrics[1].comparisons[0].mean
    assert 0 < gain < 0.0002
    assert f"+{gain:.6f}" in text


def test_the_same_table_gives_the_same_bytes(tmp_path: Path):
    pages = [write_verdict(_verdict(), tmp_path / name).parent for name in ("one", "two")]

    files = [
        {p.relative_to(page): p.read_bytes() for p in page.rglob("*") if p.suffix != ".xlsx" and p.is_file()}
        for page in pages
    ]
    assert files[0] == files[1]
    assert len(files[0]) > 10


def test_control_characters_of_names_are_codes_in_pictures(tmp_path: Path):
    rows = [
        {**row, "name": row["name"].replace("gate", "gate\x1b[31m\x00"), "set": f"{row['set']}\x0b"} for row in _table()
    ]

    write_verdict(csham.verdict(rows, metric="map", groups="set"), tmp_path / "page")

    [picture] = (tmp_path / "page/figures").glob("*.svg")
    words = "".join(ElementTree.parse(picture).getroot().itertext())
    assert "<b>gate\\x1b[31m\\x00</b>" in words
    assert "\x1b" not in words


def test_another_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("all of it")

    with pytest.raises(UserError, match=r"thesis\.tex"):
        write_verdict(_verdict(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "all of it"
