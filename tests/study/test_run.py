"""A whole comparison from Python; its cells are done by a stand-in for workers, which trains nothing."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from csham.backbones.own import use_code
from csham.errors import UserError
from csham.layers.own import code_of
from csham.study.results import assess
from csham.study.run import choose_engine, compare, dry_run
from csham.study.setup import Request, read_request_file


@pytest.fixture
def deeds(tmp_path, monkeypatch):
    """Set what the stand-in does, by seed."""
    monkeypatch.setattr("csham.study.engines.local._WORKER", "worker_without_torch")
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))

    def say(**what):
        monkeypatch.setenv("DEEDS", json.dumps(what))

    say()
    return say


@pytest.fixture
def request_of(images, tmp_path):
    """Make a request for a small study."""

    def make(**given):
        settings = {"epochs": 1, "batch_size": 8, "image_size": 32, "precision": "fp32"}
        words = {"backbones": ["lenet5"], "attentions": ["se"], "seeds": (0, 1), "machine": {"device": "cpu"}}
        return Request(data=str(images), folder=tmp_path / "study", settings=settings, **(words | given))

    return make


def test_a_comparison_says_what_is_done_and_goes_on(deeds, request_of, tmp_path, capsys):
    deeds(**{"1": ["fail"]})
    finished = compare(request_of(), costs=False, quiet=True)
    assert [(record["label"], record["seed"]) for record in finished.failed] == [("lenet5", 1)]
    assert (finished.missing, finished.signum) == ([], None)
    said = finished.to_dict()
    assert (said["study"], said["finished"]) == (str(tmp_path / "study"), False)
    assert [cell["state"] for cell in said["cells"]] == ["done", "done", "failed", "done"]
    deeds()
    again = compare(request_of(), retry_failed=True, engine=choose_engine(jobs=2), costs=False, quiet=True)
    assert again.failed == []
    assert again.to_dict()["finished"]
    assert assess(again.store.study, again.records.values()).headline
    assert capsys.readouterr() == ("", "")


def test_a_part_of_the_cells_is_all_that_a_call_answers_for(deeds, request_of):
    finished = compare(request_of(), shard=(2, 2), costs=False, quiet=True)
    assert [cell.label for cell in finished.cells] == ["lenet5 + se, seed 0", "lenet5 + se, seed 1"]
    assert (finished.missing, finished.failed) == ([], [])
    assert not finished.to_dict()["finished"]


def test_a_dry_run_writes_nothing_and_counts_what_is_left(deeds, request_of, tmp_path):
    plan = dry_run(request_of(), jobs=2, quiet=True)
    assert not (tmp_path / "study").exists()
    assert len(plan.states) == len(plan.hours) == 4
    assert plan.total_hours == pytest.approx(sum(plan.hours.values()) / 2)
    compare(request_of(), costs=False, quiet=True)
    plan = dry_run(request_of(), quiet=True)
    assert ([state.state for state in plan.states], plan.hours, plan.total_hours) == (["done"] * 4, {}, 0)


def test_what_has_no_controls_is_refused_before_anything_is_written(request_of, tmp_path):
    for call in (compare, dry_run):
        with pytest.raises(UserError, match="googlenet can be neither widened nor deepened"):
            call(request_of(backbones=["googlenet"]), budget_control=True, quiet=True)
    assert not (tmp_path / "study").exists()


@pytest.fixture
def edit_code(own_names, tmp_path, monkeypatch):
    """Name an attention of one's own, whose code is another from the call on."""
    (tmp_path / "own_gate.py").write_text("from torch import nn\nclass Gate(nn.Identity):\n    pass\n")
    sys.path.insert(0, str(tmp_path))
    use_code("own_gate:Gate")

    def edit():
        code = replace(code_of("own_gate:Gate"), sha256="1" * 64)
        monkeypatch.setattr("csham.backbones.spec.code_of", {"own_gate:Gate": code}.get)

    return edit


def test_runs_that_need_code_from_before_it_was_edited_are_refused_before_any_is_trained(
    deeds, request_of, edit_code, tmp_path
):
    finished = compare(request_of(attentions=["se", "own_gate:Gate"]), costs=False, quiet=True)
    edit_code()
    (old,) = (network for network in finished.store.study.networks if network.attention_sha256)
    plan = (tmp_path / "study/study.yaml").read_text()
    for words in ({"attentions": []}, {"attentions": ["own_gate:Gate"]}):
        with pytest.raises(UserError) as refused:
            compare(request_of(seeds=(0, 1, 2), **words), costs=False, quiet=True)
        for part in (f"1 run to come of {old.label} needs the old one", "study.yaml; or ask for no more seeds"):
            assert part in str(refused.value)
        assert (tmp_path / "study/study.yaml").read_text() == plan
    assert compare(request_of(attentions=["eca"]), costs=False, quiet=True).to_dict()["finished"]  # needs none of it
    both = compare(request_of(attentions=["own_gate:Gate"]), costs=False, quiet=True)
    assert [cell["state"] for cell in both.to_dict()["cells"]] == ["done"] * 10
    assert {network.attention_sha256 for network in both.store.study.networks} == {None, old.attention_sha256, "1" * 64}


def test_failed_runs_of_code_from_before_it_was_edited_stay_as_they_are(deeds, request_of, edit_code):
    deeds(**{"1": ["fail", "fail"]})
    compare(request_of(attentions=["own_gate:Gate"]), costs=False, quiet=True)
    edit_code()
    assert len(compare(request_of(attentions=[]), costs=False, quiet=True).failed) == 2
    with pytest.raises(UserError, match=r"Put the old code back, or take that network out of .*study\.yaml\.$"):
        compare(request_of(attentions=[]), retry_failed=True, costs=False, quiet=True)


def test_names_in_a_file_are_taken_apart_as_on_the_command_line(tmp_path):
    (tmp_path / "grid.yaml").write_text("backbones: resnet20@width=1.25,depth=26, lenet5\n")
    assert read_request_file(tmp_path / "grid.yaml").backbones == ("resnet20@width=1.25,depth=26", "lenet5")
