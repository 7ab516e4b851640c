"""A whole comparison from Python; its cells are done by a stand-in for workers, which trains nothing."""

import json
import os
from pathlib import Path

import pytest

from csham.errors import UserError
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


def test_names_in_a_file_are_taken_apart_as_on_the_command_line(tmp_path):
    (tmp_path / "grid.yaml").write_text("backbones: resnet20@width=1.25,depth=26, lenet5\n")
    assert read_request_file(tmp_path / "grid.yaml").backbones == ("resnet20@width=1.25,depth=26", "lenet5")
