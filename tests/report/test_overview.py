"""Several studies seen together: what is planned and done, one table of verdicts, costs, and the page of it all."""

import csv
import io
import json
import shutil
from dataclasses import replace

import pytest
import yaml
from study_cases import network, networks_of, write_study

from csham.errors import UserError
from csham.report.overview_page import write_overview
from csham.report.study_report import write_report
from csham.study.catalogue import read_results
from csham.study.overview import see_together
from csham.study.study_file import read_study
from csham.study.study_file import write_study as write_plan


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """One complete, one with a run missing and one failed, one that is only planned."""
    place = tmp_path_factory.mktemp("several")
    networks = {name: networks_of(name) for name in ("resnet20", "resnet32")}
    write_study(place / "first", networks=networks["resnet20"], seeds=(0, 1, 2, 3), epochs=1)
    write_study(place / "second", networks=networks["resnet32"], epochs=1, missing={(2, 2)}, failed={(1, 0): "boom"})
    planned = write_study(place / "planned", networks=networks["resnet20"], epochs=1)
    (planned / "records.jsonl").unlink()
    (planned / "costs.json").unlink()
    return place


@pytest.fixture(scope="module")
def overview(studies):
    return see_together([studies / name for name in ("first", "second", "planned")])


def test_the_first_sentence_says_how_much_is_done(overview):
    assert overview.headline.startswith("40 of 60 planned runs are done, of 3 studies, of which 1 is complete. ")
    shares = {one.name: (one.planned, one.done, one.failed) for one in overview.studies}
    assert shares == {"first": (24, 24, 0), "second": (18, 16, 1), "planned": (18, 0, 0)}


def test_all_comparisons_are_one_table_without_budget_controls(overview):
    (metric,) = overview.verdict.metrics
    assert {(one.backbone, one.name) for one in metric.comparisons} == {
        (study, name) for study in ("first", "second") for name in ("se", "eca", "cbam", "csham (transfer)")
    }
    second = next(one for one in metric.comparisons if (one.backbone, one.name) == ("second", "eca"))
    assert second.seeds == ("0", "1")  # the third is missing
    assert {one.name: one.groups for one in metric.pooled}["se"] == ("first", "second")


def test_differences_are_those_of_the_studies_own_report(studies, overview):
    own = write_report(studies / "first", studies / "own report").results
    ours = {one.name: one for one in overview.verdict.metrics[0].comparisons if one.backbone == "first"}
    for comparison in own.comparisons:
        if comparison.instead_of is None:
            assert ours[comparison.name].mean == pytest.approx(comparison.mean, abs=1e-9)
            assert ours[comparison.name].t_interval == pytest.approx(comparison.t_interval, abs=1e-9)


def test_costs_are_ratios_to_the_plain_network(overview):
    rows = {(one.group, one.variant, one.measured): one.ratio for one in overview.costs}
    assert rows["first", "se", True] == pytest.approx(1.11, abs=0.02)
    assert rows["first", "csham (transfer)", True] == pytest.approx(1.37, abs=0.03)
    assert ("first", "se", False) in rows
    assert not [one for one in overview.costs if one.group == "planned"]


def test_runs_that_shared_a_process_say_nothing_of_costs(studies, tmp_path):
    study = write_study(tmp_path / "shared", networks=[network(), network(attention="se")], epochs=1)
    assert {one.measured for one in see_together([study]).costs} == {True, False}
    records = (study / "records.jsonl").read_text()
    (study / "records.jsonl").write_text(records.replace('"processes": 1', '"processes": 1, "shares_process": true'))
    assert {one.measured for one in see_together([study]).costs} == {True}


def test_one_run_alone_says_nothing_of_costs(tmp_path):
    study = write_study(tmp_path / "one", networks=[network(), network(attention="se")], epochs=1)
    lines = (study / "records.jsonl").read_text().splitlines(keepends=True)
    plain = [line for line in lines if json.loads(line)["label"] == network()["backbone"]]
    (study / "records.jsonl").write_text("".join([plain[0], *(line for line in lines if line not in plain)]))
    assert {one.measured for one in see_together([study]).costs} == {True}
    (study / "records.jsonl").write_text("".join([*plain[:2], *(line for line in lines if line not in plain)]))
    assert {one.measured for one in see_together([study]).costs} == {True, False}


def test_times_of_runs_are_those_of_seeds_and_a_processor_that_both_had(tmp_path):
    study = write_study(tmp_path / "times", networks=[network(), network(attention="se")], epochs=1, costs=False)
    records = [json.loads(line) for line in (study / "records.jsonl").read_text().splitlines()]
    for record in records:
        seed, attends = record["seed"], "se" in record["label"]
        record["environment"]["processor"] = "slow" if (attends, seed) == (True, 2) else "fast"
        seconds = (100 if seed == 2 else 10) * (1.5 if attends else 1)  # the third seed's machine was busy
        record["result"]["seconds"] = record["history"][0]["seconds"] = seconds
    (study / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (cost,) = see_together([study]).costs
    assert cost.ratio == pytest.approx(1.5)
    assert cost.machine == "cpu with torch 2.15, fast"


def test_what_a_studys_own_report_warns_of_is_said_of_several_too(tmp_path):
    study = write_study(tmp_path / "old", networks=[network(), network(attention="se")], epochs=1, costs=False)
    records = [json.loads(line) for line in (study / "records.jsonl").read_text().splitlines()]
    records[0]["environment"]["commit"] = "another"
    (study / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_plan(study, replace(read_study(study), seeds=(0, 1)))
    with (study / "study.yaml").open("a") as file:
        file.write("# edited\n")
    notes = see_together([study]).notes
    for said in (
        "old: The commit of csham differs between runs",
        "old: 2 records belong to other settings",
        "old: study.yaml was edited or damaged",
        "old: 6 lines of ",
    ):
        assert [note for note in notes if note.startswith(said)], notes
    told = []
    read_results(study, told.append)
    assert told == notes[: len(told)]
    own = set(write_report(study).warnings)
    assert {note.removeprefix("old: ") for note in told} <= own


def test_studies_that_share_runs_are_told(tmp_path):
    networks = [network(), network(attention="se")]
    whole = write_study(tmp_path / "whole", networks=networks, epochs=1)
    part = shutil.copytree(whole, tmp_path / "part")
    lines = (part / "records.jsonl").read_text().splitlines(keepends=True)
    other = json.loads(lines[3]) | {"started": "2026-11-25T00:00:00+0000"}  # of the same cell, run again
    (part / "records.jsonl").write_text("".join([*lines[:3], json.dumps(other) + "\n"]))
    first, *rest = see_together([whole, part]).notes
    assert first.startswith("whole and part share 3 runs, which count twice here")
    assert not [note for note in rest if " share " in note]
    assert not [note for note in see_together([whole]).notes if " share " in note]


def test_backbones_of_ones_own_are_groups_by_their_code(tmp_path):
    for name, digest in (("one", "a" * 64), ("other", "b" * 64)):
        plain = network("my_net:make", backbone_sha256=digest)
        write_study(tmp_path / name, networks=[plain, {**plain, "attention": "se"}], epochs=1, costs=False)
    both = [network("my_net:make", backbone_sha256=digest * 64) for digest in "ab"]
    both += [{**plain, "attention": "se"} for plain in both]
    write_study(tmp_path / "both", networks=both, epochs=1, costs=False)
    overview = see_together([tmp_path / name for name in ("one", "other", "both")])
    (metric,) = overview.verdict.metrics
    assert [(one.backbone, one.name) for one in metric.comparisons] == [
        ("one", "se"),
        ("other", "se"),
        ("both, my_net:make (code aaaaaaa)", "se"),
        ("both, my_net:make (code bbbbbbb)", "se"),
    ]
    assert len(metric.pooled) == 1
    assert {one.variant for one in overview.costs} == {"se"}


def test_page_tables_and_markdown(overview, tmp_path):
    page = write_overview(overview, tmp_path / "page", tmp_path / "claim.md")
    html, text = page.read_text(encoding="utf-8"), (tmp_path / "claim.md").read_text(encoding="utf-8")
    assert overview.progress in html
    assert "<h3>Over groups together</h3>" in html
    assert text.startswith(overview.headline)
    assert "](page/figures/gains-top-1-0.svg)" in text
    assert (tmp_path / "page" / "figures" / "gains-top-1-0.svg").is_file()
    assert "| csham (transfer) |" in text
    rows = list(csv.DictReader(io.StringIO((page.parent / "tables" / "studies.csv").read_text())))
    assert [row["done"] for row in rows] == ["24", "16", "0"]
    assert len((page.parent / "tables" / "pooled.csv").read_text().splitlines()) == 5
    again = write_overview(overview, tmp_path / "page", tmp_path / "claim.md")  # in its own place
    assert again.read_text(encoding="utf-8") == html


def test_plans_without_a_run_have_a_page(studies, tmp_path):
    overview = see_together([studies / "planned", studies / "first"])
    assert overview.verdict is not None
    nothing = see_together([studies / "planned"])
    assert nothing.verdict is None
    assert nothing.headline.endswith("Nothing can be compared yet.")
    text = write_overview(nothing, tmp_path / "page", tmp_path / "plan.md").read_text()
    assert "0 of 18 planned runs are done" in text
    assert "## Plan" in (tmp_path / "plan.md").read_text()
    assert nothing.to_dict()["verdict"] is None


def test_studies_of_several_backbones_make_a_group_each(tmp_path):
    write_study(tmp_path / "both", networks=[*networks_of("resnet20"), *networks_of("resnet32")], epochs=1)
    overview = see_together([tmp_path / "both"])
    assert {one.backbone for one in overview.verdict.metrics[0].comparisons} == {"both, resnet20", "both, resnet32"}


def test_what_cannot_stand_in_one_table_is_refused(studies, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    twin = write_study(tmp_path / "elsewhere" / "first", networks=[network(), network(attention="se")], epochs=1)
    with pytest.raises(UserError, match="same name"):
        see_together([studies / "first", twin])
    strict = write_study(tmp_path / "strict", networks=[network(), network(attention="se")], worthwhile=0.2, epochs=1)
    with pytest.raises(UserError, match=r"differ in what is worth having \(0\.2, 0\.5 points\)"):
        see_together([studies / "first", strict])
    with pytest.raises(UserError, match="there is no study"):
        see_together([studies / "first", studies / "nowhere"])


def test_hostile_names_and_damaged_costs(studies, tmp_path):
    bad = write_study(tmp_path / "<b>bad", networks=[network(), network(attention="se")], epochs=1)
    study = yaml.safe_load((bad / "study.yaml").read_text())
    study["data"]["source"] = "<script>alert(1)</script>"
    (bad / "study.yaml").write_text(yaml.safe_dump(study))
    (bad / "costs.json").write_text("{")
    overview = see_together([bad, studies / "first"])
    assert any("costs.json cannot be read" in note for note in overview.notes)
    html = write_overview(overview, tmp_path / "page", tmp_path / "page.md").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "<b>bad" not in html
    markdown = (tmp_path / "page.md").read_text()
    assert "<script>" not in markdown
    assert "<b>" not in markdown
