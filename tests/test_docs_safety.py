"""The page on safety: every promise names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/safety.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 25
    missing = [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")]
    assert not missing


def test_every_line_of_a_table_has_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\| *(what|---)|\|---", line)]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row] == []


def test_how_to_report_a_hole_is_said():
    assert "](../SECURITY.md)" in PAGE
    assert "](docs/safety.md)" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "](docs/safety.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
