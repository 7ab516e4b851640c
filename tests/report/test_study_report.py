"""A report is made whole or not at all, from the study's folder alone, and says what is missing."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from study_cases import EFFECTS, network, networks_of, write_study

from csham.errors import UserError
from csham.files import summed
from csham.report.study_report import write_report
from csham.study.cell import CellRunner
from csham.study.grid import Network
from csham.study.setup import Request, set_up
from csham.study.study_file import read_study
from csham.study.study_file import write_study as write_plan


def listing(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files(report):
    pytest.importorskip("openpyxl")
    names = set(listing(report.page.parent))
    for table in ("verdicts", "budget", "networks", "runs"):
        assert {f"tables/{table}.{suffix}" for suffix in ("csv", "md", "tex")} <= names
    assert {"index.html", "tables/curves.csv", "tables/per_class.csv", "tables/study.xlsx"} <= names
    for figure in ("differences", "val-top1-resnet20", "val-top1-end-resnet20", "train-loss-resnet20"):
        assert {f"figures/{figure}.svg", f"figures/{figure}.png"} <= names
    for cost in ("train-step", "latency", "params"):
        assert f"figures/top1-{cost}-resnet20.svg" in names


def test_the_study_is_only_read(study, report):
    assert {path.name for path in study.iterdir()} == {"study.yaml", "records.jsonl", "costs.json", "report"}


def test_the_same_records_give_the_same_bytes(study, report, tmp_path, monkeypatch):
    monkeypatch.setattr("csham.report.study_pictures.png_bytes", lambda figure: b"")  # test_study_figures has them
    again = write_report(study, tmp_path / "again")
    first, second = listing(report.page.parent), listing(again.page.parent)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name] and not name.endswith(".png")] == []


def test_csv_and_xlsx_hold_the_results(report):
    tables = report.page.parent / "tables"
    with (tables / "verdicts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sheet = pytest.importorskip("openpyxl").load_workbook(tables / "study.xlsx")["verdicts"]
    keys = [cell.value for cell in sheet[1]]
    for number, one in enumerate(report.results.comparisons):
        in_sheet = dict(zip(keys, [cell.value for cell in sheet[number + 2]], strict=True))
        assert rows[number]["network"] == in_sheet["network"] == one.label
        for key, value in (("difference", one.mean), ("p_t", one.p_t), ("t_low", one.t_interval[0])):
            assert float(rows[number][key]) == pytest.approx(value, abs=0)
            assert in_sheet[key] == pytest.approx(value, rel=1e-14)
    with (tables / "per_class.csv").open(encoding="utf-8", newline="") as file:
        classes = {row["class"] for row in csv.DictReader(file)}
    assert {"'=cmd()", "'@sum", "<script>alert(1)</script>", "a\nb"} <= classes


def test_top5_is_shown_where_runs_have_it(report, tmp_path, no_pictures):
    networks = [network(), network(attention="se")]
    few = write_report(write_study(tmp_path / "few", networks=networks, classes=["a", "b"]))
    for found, there in ((report, True), (few, False)):
        assert ("top-5" in found.page.read_text(encoding="utf-8")) is there
        for table in ("networks", "runs"):
            text = (found.page.parent / f"tables/{table}.csv").read_text(encoding="utf-8")
            assert ("top5" in text) is there, table
            assert ("top-5" in (found.page.parent / f"tables/{table}.md").read_text(encoding="utf-8")) is there


def test_without_openpyxl_only_the_spreadsheet_is_missing(study, report, tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    monkeypatch.setattr("csham.report.study_pictures.png_bytes", lambda figure: b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    found = write_report(study, tmp_path / "again")
    assert set(listing(report.page.parent)) - set(listing(found.page.parent)) == {"tables/study.xlsx"}
    assert [note for note in found.warnings if 'openpyxl: pip install "csham[report]"' in note]
    assert "study.xlsx" not in found.page.read_text(encoding="utf-8")


@pytest.fixture
def empty(tmp_path_factory):
    """A study without records, whose report takes no time."""
    missing = {(0, 0)}
    return write_study(tmp_path_factory.mktemp("s") / "empty", networks=[network()], seeds=(0,), missing=missing)


def test_a_report_is_replaced_as_a_whole(empty, tmp_path):
    output = tmp_path / "out"
    write_report(empty, output)
    (output / "tables" / "stale.csv").write_text("old")
    write_report(empty, output)
    assert not (output / "tables" / "stale.csv").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "index.html"])
def test_what_is_not_a_report_is_not_replaced(empty, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="--output DIR"):
        write_report(empty, tmp_path)
    assert listing(tmp_path) == {name: b"mine"}


def test_a_place_that_cannot_be_written(empty, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        write_report(empty, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write the report to .*Another place: --output DIR"):
        write_report(empty, tmp_path / "file" / "report")


def test_a_failed_writing_leaves_the_old_report(empty, tmp_path, monkeypatch):
    pytest.importorskip("openpyxl")
    old = listing(write_report(empty, tmp_path / "out").page.parent)
    monkeypatch.setattr("csham.report.study_report.xlsx_bytes", lambda tables: "no bytes")
    with pytest.raises(TypeError):
        write_report(empty, tmp_path / "out")
    assert listing(tmp_path) == {f"out/{name}": content for name, content in old.items()}


@pytest.mark.parametrize("broken", ["nothing", "file", "yaml"])
def test_no_study(tmp_path, broken):
    write_study(tmp_path / "cifar", networks=[network()], seeds=(0,), epochs=1)
    path = tmp_path / "cifra"
    if broken == "file":
        path.write_text("")
    if broken == "yaml":
        path.mkdir()
        (path / "study.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=r"study\.yaml should hold" if broken == "yaml" else "Studies there: .*cifar"):
        write_report(path)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("changes", "shown", "not_shown"),
    [
        (
            {"networks": [network()], "seeds": (0,), "epochs": 1, "costs": False},
            ["There is nothing to compare", "Costs have not been measured", "minutes for a run, as it was"],
            ['id="per-class"', "class=warnings", "latency-resnet20"],
        ),
        (
            {"networks": [network(), network(attention="se")], "seeds": (0,), "epochs": 2},
            ["1 seed can say little", "cannot tell yet", 'id="per-class"'],
            ["nan", "None"],
        ),
        (
            {"networks": networks_of("resnet20")[:2], "missing": {(0, 0), (0, 1), (0, 2)}},
            [
                "3 runs of 6 have no record yet",
                "cannot tell yet",
                "cannot be compared with the plain network yet: no seed has both",
            ],
            ["figure-differences", 'id="per-class"', "nan", "None"],
        ),
        (
            {"networks": networks_of("resnet20")[:2], "failed": {(n, s): "boom" for n in (0, 1) for s in (0, 1, 2)}},
            ["6 runs failed", "RuntimeError: boom", "File &#34;loop.py&#34;"],
            ["figure-", 'id="curves"', "nan", "None"],
        ),
        (
            {"networks": networks_of("resnet20")[:2], "missing": {(n, s) for n in (0, 1) for s in (0, 1, 2)}},
            ["6 runs of 6 have no record yet", "No run says where it ran"],
            ["figure-", "nan", "None"],
        ),
    ],
    ids=["one network, one seed", "one seed", "no plain network's record", "all failed", "no record"],
)
def test_partial_studies(tmp_path, changes, shown, not_shown):
    page = write_report(write_study(tmp_path / "study", **changes)).page.read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("<script>")]
    for text in shown:
        assert text in body
    for text in not_shown:
        assert text not in body


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_thirty_networks(tmp_path):
    places = ("auto", "post", "stage", "last")
    networks = [network()]
    networks += [network(attention=name, position=place) for name in EFFECTS for place in places if name != "none"]
    networks += [network(attention=name, gated=True, stages=[s]) for name in ("se", "eca") for s in range(6)]
    report = write_report(write_study(tmp_path / "study", networks=networks, epochs=3, seeds=(0, 1)))
    assert len(report.results.networks) == 29
    body = report.page.read_text(encoding="utf-8")
    assert all(body.count(row.label) > 5 for row in report.results.networks if row.n)


@pytest.mark.usefixtures("no_pictures")
def test_a_reader_is_warned(tmp_path):
    study = write_study(tmp_path / "study", networks=[network()], seeds=(0, 1), epochs=1)
    lines = (study / "records.jsonl").read_text(encoding="utf-8").splitlines()
    other = json.loads(lines[1])
    other["environment"]["commit"] = "0" * 40
    strange = {**json.loads(lines[0]), "key": "0" * 16}
    text = "\n".join([lines[0], json.dumps(other), json.dumps(summed(strange)), "{torn", ""])
    (study / "records.jsonl").write_text(text, encoding="utf-8")
    costs = json.loads((study / "costs.json").read_text())
    costs["costs"][0]["failed"] = "out of memory"
    (study / "costs.json").write_text(json.dumps(costs | {"finished": False}))
    warnings = "\n".join(write_report(study).warnings)
    for text in (
        "commit of csham differs",
        "1 record belongs to other settings",
        "line 4 is not a record",
        "Costs of resnet20 are incomplete: out of memory",
        "measuring of costs was interrupted",
    ):
        assert text in warnings
    (study / "costs.json").write_text("{")
    shutil.rmtree(study / "report")
    report = write_report(study)
    assert "costs.json cannot be read (JSONDecodeError" in "\n".join(report.warnings)
    assert "JSONDecodeError" in report.page.read_text(encoding="utf-8")


def test_whoever_makes_a_report_of_old_lines_is_told_that_they_cannot_be_checked(empty, tmp_path):
    study = write_study(tmp_path / "study", networks=[network()], seeds=(0,), epochs=1, costs=False)
    told = "1 line of .*records.jsonl cannot be checked for changes, being from before lines had sums"
    report = write_report(study)
    assert re.search(told, report.warnings[-1])
    assert not re.search(told, report.page.read_text(encoding="utf-8"))  # the same bytes as before there were sums
    assert not [note for note in write_report(empty).warnings if re.search(told, note)]


def test_a_report_says_that_records_and_plan_were_changed(tmp_path):
    study = write_study(tmp_path / "study", networks=[network()], seeds=(0, 1), epochs=1, costs=False)
    plan = read_study(study)
    write_plan(study, plan)
    first, second = (study / "records.jsonl").read_text(encoding="utf-8").splitlines()
    changed = json.loads(second)
    changed["result"]["top1"] = 99.0
    (study / "records.jsonl").write_text(f"{first}\n{json.dumps(changed)}\n", encoding="utf-8")
    text = (study / "study.yaml").read_text(encoding="utf-8")
    (study / "study.yaml").write_text(text.replace("worthwhile: 0.5", "worthwhile: 2"), encoding="utf-8")
    report = write_report(study)
    page = report.page.read_text(encoding="utf-8")
    for told in ("line 2 (resnet20, seed 1) was changed since it was written", "study.yaml was edited or damaged"):
        assert told in "\n".join(report.warnings)
        assert told in page
    assert "99.00" not in page
    assert [cell.seed for cell in report.results.missing] == [1]


def test_what_a_killed_process_left_of_a_report_goes_with_the_next(empty):
    program = "import os, pathlib, csham.files as f\nwith f.new_folder(pathlib.Path('report')): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program], cwd=empty, check=False).returncode == 9
    assert len(list(empty.glob(".report.*"))) == 1
    write_report(empty)
    assert not list(empty.glob(".*"))


@pytest.mark.slow
def test_runs_that_stopped_early_are_said_to_have(images, tmp_path):
    settings = {"epochs": 9, "lr": 1e-12, "weight_decay": 0.0, "patience": 2, "batch_size": 8, "image_size": 32}
    request = Request(
        data=str(images),
        folder=tmp_path / "study",
        networks=(Network("lenet5"), Network("lenet5", "simam")),
        seeds=(0,),
        settings={**settings, "precision": "fp32"},
    )
    store = set_up(request, lambda text: None, lambda *_: None).store
    runner = CellRunner(store, {"device": "cpu", "compile": False, "trackers": ("none",)})
    for cell in store.study.cells():
        runner.run(cell.key)
    report = write_report(store.path)
    page = report.page.read_text(encoding="utf-8")
    assert "at most 9 epochs, stopped early with patience 2" in page
    assert "Runs may stop early, and took 3 of 9 epochs" in page
    with (report.page.parent / "tables/runs.csv").open(encoding="utf-8") as file:
        assert [row["epochs"] for row in csv.DictReader(file)] == ["3", "3"]
    assert sum(row.n for row in report.results.networks) == 2  # a run that stopped early is a finished one
