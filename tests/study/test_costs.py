"""costs.json: one run for all networks, what makes it run again, and a network that cannot be measured."""

import json
import os

import pytest

from csham.errors import UserError
from csham.files import summed
from csham.study import costs
from csham.study.costs import measure_costs, read_costs
from csham.study.grid import Network

QUICK = {"device": "cpu", "rounds": 1, "seconds": 1.0}


@pytest.fixture
def comparisons(monkeypatch):
    """The number of times that something was measured."""
    calls = []
    real = costs.make_comparison

    def counted(*given, **settings):
        calls.append(settings)
        return real(*given, **settings)

    monkeypatch.setattr(costs, "make_comparison", counted)
    return calls


def test_a_row_for_each_network_and_once(make_study, tmp_path, comparisons):
    networks = (Network("lenet5"), Network("lenet5@width=2", instead_of="lenet5 + se"), Network("lenet5", "se"))
    study = make_study(networks=networks, batch_size=4)
    content = measure_costs(study, tmp_path, **QUICK)
    assert read_costs(tmp_path) == content
    assert content["finished"]
    assert [row["network"] for row in content["costs"]] == [network.label for network in networks]
    plain, wider, attention = content["costs"]
    assert plain["params"] == 62_006
    assert attention["params_extra"] == attention["params"] - plain["params"] > 0
    assert wider["params_ratio"] > 3
    for row in content["costs"]:
        assert not row["failed"]
        assert row["batch_size"] == 4
        assert row["train_images_per_s"] == pytest.approx(4000 / row["train_step_ms"])
        assert min(row["flops"], row["images_per_s"], row["latency_ms"], row["peak_mib"], row["train_peak_mib"]) > 0
    assert measure_costs(study, tmp_path, **QUICK) == content
    assert len(comparisons) == 1


def test_an_extended_study_is_measured_again(make_study, tmp_path, comparisons):
    study = make_study(networks=(Network("lenet5"),), batch_size=4)
    measure_costs(study, tmp_path, **QUICK)
    content = measure_costs(study.extended(networks=[Network("lenet5", "eca")]), tmp_path, **QUICK)
    assert [row["network"] for row in content["costs"]] == ["lenet5", "lenet5 + eca"]
    assert len(comparisons) == 2


@pytest.mark.parametrize("change", ["machine", "finished", "garbled"])
def test_what_cannot_be_believed_is_measured_again(make_study, tmp_path, comparisons, change):
    study = make_study(networks=(Network("lenet5"),), batch_size=4)
    content = measure_costs(study, tmp_path, **QUICK)
    if change == "machine":
        content["machine"]["processor"] = "another"
    elif change == "finished":
        content["finished"] = False
    text = json.dumps(summed(content))
    (tmp_path / "costs.json").write_text(text[:-9] if change == "garbled" else text)
    measure_costs(study, tmp_path, **QUICK)
    assert len(comparisons) == 2


@pytest.mark.timeout(60)
def test_costs_that_are_no_file_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "costs.json")
    with pytest.raises(UserError, match=r"costs\.json .*no file"):
        read_costs(tmp_path)


def test_a_network_that_fails_has_its_error_in_its_row(make_study, tmp_path):
    networks = (Network("lenet5"), Network("resnet20@depth=21", instead_of="x"))
    plain, failed = measure_costs(make_study(networks=networks, batch_size=4), tmp_path, **QUICK)["costs"]
    assert not plain["failed"]
    assert "even" in failed["failed"]
    assert failed["images_per_s"] is failed["train_images_per_s"] is None


def test_a_batch_that_no_network_has_the_memory_for_is_halved(make_study, tmp_path, monkeypatch):
    from csham.cost.task import Task

    real = Task.warm_up

    def warm_up(self):
        if len(self.images) > 2:
            import torch

            raise torch.OutOfMemoryError("no")
        real(self)

    monkeypatch.setattr(Task, "warm_up", warm_up)
    (row,) = measure_costs(make_study(networks=(Network("lenet5"),), batch_size=8), tmp_path, **QUICK)["costs"]
    assert row["batch_size"] == 2
    assert not row["failed"]
    assert row["train_step_ms"] > 0


def written(path, content):
    (path / "costs.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_no_changed_byte_changes_a_cost(tmp_path):
    content = {"format": 2, "finished": True, "machine": {}, "costs": [{"network": "a", "latency_ms": 1.5}]}
    line = json.dumps(summed(content)).encode()
    assert read_costs(written(tmp_path, line)) == content
    for place, byte in enumerate(line):
        try:
            read = read_costs(written(tmp_path, line[:place] + bytes([byte ^ 1]) + line[place + 1 :]))
        except UserError as err:
            assert "costs.json" in str(err)  # noqa: PT017  some bytes are spaces
        else:
            assert read == content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        ({"format": 2, "costs": []}, "was changed since it was written"),
        ({"format": 3, "costs": []}, "not one that this version of csham reads"),
        ({"costs": [5]}, "something else"),
        ({"costs": [{"network": ["a"]}]}, "something else"),
        ({"costs": [{"network": "a", "latency_ms": "fast"}]}, "something else"),
        ({"costs": [], "machine": 5}, "something else"),
    ],
    ids=str,
)
def test_what_is_no_file_of_costs(tmp_path, content, expected):
    with pytest.raises(UserError, match=f"costs.json .*{expected}"):
        read_costs(written(tmp_path, content))
