import json

import pytest

KINDS = ["backbones", "attentions", "strategies", "positions", "datasets", "recipes", "zoo"]


def test_everything(csham):
    code, out, err = csham("list")
    assert (code, err) == (0, "")
    for word in [*KINDS, "resnet20", "csham", "transfer", "residual", "digits", "paper"]:
        assert word in out


def test_everything_as_json(csham):
    found = json.loads(csham("list", "--json")[1])
    assert list(found) == KINDS
    assert all(row["name"] and row["summary"] for rows in found.values() for row in rows)


@pytest.mark.parametrize("kind", ["strategies", "positions", "datasets", "recipes"])
def test_one_kind(csham, kind):
    code, out, _ = csham("list", kind)
    assert code == 0
    assert kind in out


def test_attentions_with_parameters(csham):
    rows = {row["name"]: row["params"] for row in json.loads(csham("list", "attentions", "--json")[1])}
    assert rows["se"] == 2 * 256 * 16 + 256 + 16  # two 1x1 convolutions with bias, reduction 16
    assert rows["csham"] > 0
    assert "for 256 channels" in csham("list", "attentions")[1]


def test_backbones_with_parameters(csham):
    rows = {row["name"]: row["params"] for row in json.loads(csham("list", "backbones", "--json")[1])}
    # 0.27 million for ten classes (He et al., table 6), and 90 rows of 65 more for a hundred.
    assert rows["resnet20"] == 272_474 + 90 * 65


def test_attentions_with_their_maps_and_parts(csham):
    rows = {row["name"]: row for row in json.loads(csham("list", "attentions", "--json")[1])}
    assert rows["cbam"]["maps"] == ["channel", "spatial"]
    assert rows["cbam"]["two_part"] is True
    assert rows["a2"]["maps"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_table_as_markdown(csham, kind):
    code, out, _ = csham("list", kind, "--markdown")
    assert code == 0
    header, rule, *rows = (line for line in out.splitlines() if line.startswith("|"))
    found = json.loads(csham("list", kind, "--json")[1])
    assert header == "| " + " | ".join(found[0]) + " |"
    assert {line.count("|") for line in (header, rule, *rows)} == {len(found[0]) + 1}
    assert [row.split(" ")[1] for row in rows] == [row["name"] for row in found]


def test_a_narrow_terminal_gets_every_word(csham, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    out = csham("list", "zoo")[1]
    assert max(map(len, out.splitlines())) <= 20
    left, right = ("".join(line[part].strip() for line in out.splitlines()[2:]) for part in (slice(10), slice(10, 20)))
    for row in json.loads(csham("list", "zoo", "--json")[1]):
        assert row["name"] in left
        assert row["license"] in right


def test_all_tables_as_markdown_have_headings(csham):
    out = csham("list", "--markdown")[1]
    assert [line for line in out.splitlines() if line.startswith("#")] == [f"### {kind}" for kind in KINDS]


def test_a_list_has_one_form(csham):
    code, _, err = csham("list", "--json", "--markdown")
    assert code == 2
    assert "--json and --markdown exclude each other" in err


@pytest.mark.parametrize("kind", KINDS)
def test_whole_names_in_as_many_columns_as_there_are(csham, monkeypatch, kind):
    monkeypatch.setenv("COLUMNS", "80")
    lines = csham("list", kind)[1].splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if line.startswith(" ") and line[1:2].strip()]
    assert [word for word in first if word[0].isalnum()][1:] == [
        row["name"] for row in json.loads(csham("list", kind, "--json")[1])
    ]


def test_nothing_is_lost_where_lines_are_short(csham, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = " ".join(csham("list", "attentions")[1].split())
    assert "formula: 2CR + 100, R = r1(C / 16); params: 8,292; paper: spatial_norm=False; source: after Woo" in out


def test_a_row_is_a_line_where_lines_may_be_long(csham, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = csham("list", "attentions")[1].splitlines()
    for row in json.loads(csham("list", "attentions", "--json")[1]):
        assert [line for line in lines if row["name"] in line.split() and row["source"] in line], row


def test_the_zoo_is_what_can_be_loaded(csham):
    from csham.backbones.zoo import zoo_names

    assert [row["name"] for row in json.loads(csham("list", "zoo", "--json")[1])] == [f"zoo:{n}" for n in zoo_names()]


def test_results_come_with_the_package(csham):
    code, out, err = csham("list", "results")
    assert (code, err) == (0, "")
    for word in ("cifar100-resnet20", "25.19 (23.47 to 26.90)", "-0.15 (-3.34 to +3.04)", "1.14", "cannot tell yet"):
        assert word in out
    assert "csham compare data/cifar100 --backbones resnet20" in out
    markdown = csham("list", "results", "--markdown")[1]
    assert len([line for line in markdown.splitlines() if line.startswith("| ")]) == 2 + len(
        json.loads(csham("list", "results", "--json")[1])
    )


def test_results_of_a_folder_of_ones_own(csham, finished, tmp_path):
    rows = json.loads(csham("list", "results", "--folder", finished.parent, "--json")[1])
    (row,) = (row for row in rows if row["result"] == finished.name)
    summary = json.loads((finished / "summary.json").read_text())
    assert (row["top1"], row["seeds"], row["top1_interval"]) == (summary["top1"], 1, None)
    assert str(finished.parent) not in row["command"]
    code, _, err = csham("list", "results", "--folder", tmp_path)
    assert code == 2
    assert "holds no finished run" in err
    code, _, err = csham("list", "results", "--folder", tmp_path / "nowhere")
    assert code == 2
    assert "there is no folder" in err
    code, _, err = csham("list", "backbones", "--folder", tmp_path)
    assert code == 2
    assert "--folder is of csham list results alone" in err
