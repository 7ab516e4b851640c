"""The page as a document: complete, alone, described in words, and with the results' own numbers."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from study_cases import HOSTILE

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Element:
    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.children, self.text = tag, dict(attributes), parent, [], ""

    def find(self, tag):
        return [one for one in self.all() if one.tag == tag]

    def all(self):
        for child in self.children:
            yield child
            yield from child.all()

    @property
    def words(self):
        return " ".join([self.text, *(child.words for child in self.children)]).strip()


class Document(HTMLParser):
    """A tree; every end tag has to fit."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.root = self.at = Element("document", {}, None)
        self.feed(text)
        self.close()
        assert self.at is self.root

    def handle_starttag(self, tag, attrs):
        element = Element(tag, attrs, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag, attrs):
        self.at.children.append(Element(tag, attrs, self.at))

    def handle_endtag(self, tag):
        assert tag == self.at.tag, f"</{tag}> within {self.at.tag}"
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.text += data


@pytest.fixture(scope="module")
def text(report):
    return report.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Document(text).root


def test_head(page):
    assert page.find("html")[0].attributes["lang"] == "en"
    assert page.find("title")[0].text == "hostile: csham study"
    assert any("width=device-width" in one.attributes.get("content", "") for one in page.find("meta"))


def test_nothing_comes_from_elsewhere(page, text, report):
    for element in page.all():
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert not re.match(r"\s*(\w+:|//)", element.attributes.get(name) or "")
        assert element.tag not in {"link", "iframe", "object", "embed", "base", "img"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for link in page.find("a"):
        target = link.attributes["href"]
        assert target.startswith("#") or (report.page.parent / target).is_file()


def test_only_its_own_script_may_run(page):
    [policy] = [one for one in page.find("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy"]
    scripts = [one for one in page.find("script") if one.attributes.get("type") != "application/json"]
    digest = base64.b64encode(hashlib.sha256(scripts[0].text.encode()).digest()).decode()
    assert len(scripts) == 1
    assert f"script-src 'sha256-{digest}'" in policy.attributes["content"]
    assert policy.attributes["content"].startswith("default-src 'none'")
    assert not [one for one in page.all() for name in one.attributes if name.startswith("on")]


def test_ids_are_unique_and_what_points_to_one_arrives(page, text):
    ids = [one.attributes["id"] for one in page.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for element in page.all():
        for name in ("aria-labelledby", "for", "data-copy"):
            assert set((element.attributes.get(name) or "").split()) <= set(ids)
        if (element.attributes.get("href") or "").startswith("#"):
            assert element.attributes["href"][1:] in ids
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


def test_every_picture_has_words(page):
    figures = [one for one in page.find("svg") if one.attributes.get("aria-hidden") != "true"]
    assert len(figures) == 7
    for figure in figures:
        assert figure.attributes["role"] == "img"
        title, description = figure.find("title")[0], figure.find("desc")[0]
        assert f"{title.attributes['id']} {description.attributes['id']}" == figure.attributes["aria-labelledby"]
        assert title.text
        assert len(re.findall(r"\d+\.\d", description.text)) >= 6  # a number for each network


def test_headings_go_down_one_by_one(page):
    levels = [int(one.tag[1]) for one in page.all() if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables(page):
    tables = page.find("table")
    assert len(tables) > 8
    for table in tables:
        assert table.find("caption")[0].words
        heads = table.find("th")
        assert {head.attributes.get("scope") for head in heads} <= {"col", "row"}
        assert all(head.words for head in table.find("thead")[0].find("th"))
        width = len(table.find("thead")[0].find("th"))
        assert {len(row.children) for row in table.find("tbody")[0].children} <= {width}
        box = table.parent
        assert (box.attributes["tabindex"], box.attributes["role"]) == ("0", "region")


def cells_of(page, name):
    [table] = [one for one in page.find("table") if one.attributes.get("id") == name]
    return [row.children for row in table.find("tbody")[0].children]


def test_the_verdicts_are_the_results(page, report):
    rows = cells_of(page, "verdict-table")
    assert len(rows) == len(report.results.comparisons)
    for row, one in zip(rows, report.results.comparisons, strict=True):
        assert row[0].words == one.label
        assert row[1].words == one.verdict
        assert float(row[2].attributes["data-value"]) == one.mean
        assert row[2].words.replace("\N{MINUS SIGN}", "-") == f"{one.mean:+.2f}"
        low, high = (float(part) for part in row[3].words.replace("\N{MINUS SIGN}", "-").split(" to "))
        assert (low, high) == pytest.approx(one.t_interval, abs=0.005)
        assert float(row[6].attributes["data-value"]) == one.p_t
    assert page.find("main")[0].children[0].children[0].text == report.results.headline


def test_the_budget_controls_are_the_results(page, report):
    [(one, control)] = [(one, control) for one in report.results.comparisons for control in one.controls]
    [row] = cells_of(page, "budget-table")
    assert [cell.words for cell in row[:2]] == [one.label, "resnet32"]
    assert [float(cell.attributes["data-value"]) for cell in row[2:5]] == [
        one.mean,
        control.control_mean,
        control.mean,
    ]


def test_the_networks_are_the_results(page, report):
    for row, one in zip(cells_of(page, "network-table"), report.results.networks, strict=True):
        assert float(row[2].attributes["data-value"]) == one.top1.mean
        assert row[2].words == f"{one.top1.mean:.2f} ± {one.top1.sd:.2f}"
        assert row[7].words == f"{one.params:,}"


def test_runs_say_what_became_of_them(page):
    states = [row[2].words for row in cells_of(page, "run-table")]
    assert (states.count("finished"), states.count("failed"), states.count("to come")) == (16, 1, 1)


def test_names_are_text_and_nothing_else(page, text):
    data = json.loads(next(one for one in page.find("script") if "type" in one.attributes).text)
    for network in data["networks"]:
        assert sorted(row["name"] for row in network["rows"]) == sorted(HOSTILE)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "</style><b>" not in text
    assert "<img src=x onerror=alert(1)> out of memory" in page.words


def test_classes_are_the_results(page, report):
    from csham.study.results import per_class_difference

    data = json.loads(next(one for one in page.find("script") if "type" in one.attributes).text)
    for network in data["networks"]:
        expected = {one.name: one for one in per_class_difference(report.results, network["label"])}
        for row in network["rows"]:
            assert row["difference"] == pytest.approx(expected[row["name"]].mean, abs=1e-4)
            assert row["network"] - row["plain"] == pytest.approx(row["difference"], abs=2e-4)


def test_settings_and_command(page):
    words = page.words
    assert "csham compare cifar-like --backbones resnet20" in words
    for text in ("label_smoothing", "f2ecbe4d3620649733645c648288d6d0b086db57", "python 3.11.7", "c0ffee"):
        assert text in words
