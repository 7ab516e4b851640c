"""Which machines made the runs of a study, and whether it matters."""

import pytest
from scipy import stats

from csham.study.machines import machine_notes, machine_of

H200 = {"device": "NVIDIA H200", "versions": {"torch": "2.11.0+cu130"}}
CPU = {"device": "cpu", "versions": {"torch": "2.15.0"}}


def run(seed, top1, environment=CPU, label="resnet20"):
    return {"label": label, "seed": seed, "result": {"top1": top1}, "environment": environment}


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (run(0, 1.0), "cpu with torch 2.15"),
        (run(0, 1.0, H200), "NVIDIA H200 with torch 2.11"),
        (run(0, 1.0, {}) | {"result": {"machine": {"device": "cuda:1"}}}, "cuda"),
        ({"result": {}}, "an unknown device"),
    ],
)
def test_a_machine_is_its_device_and_minor_version(record, name):
    assert machine_of(record) == name


def test_one_kind_of_machine_needs_no_words():
    assert machine_notes([run(seed, 60.0) for seed in range(3)], [], ["resnet20"]) == []
    assert machine_notes([], [], ["resnet20"]) == []


def test_too_few_plain_runs_cannot_be_tested():
    notes = machine_notes([run(0, 60.0), run(1, 60.0), run(2, 61.0, H200)], [], ["resnet20"])
    assert notes == [
        "The runs were made on 2 kinds of machine: NVIDIA H200 with torch 2.11 (1 run), cpu with torch 2.15 (2 runs).",
        "Whether the machine matters to resnet20 cannot be tested: that takes two seeds on each kind.",
    ]


def test_seeds_of_two_kinds_are_compared_by_welch():
    on_cpu, on_gpu = [60.0, 60.4, 60.1], [62.0, 62.1, 62.3]
    runs = [run(s, top1) for s, top1 in enumerate(on_cpu)] + [run(s + 3, top1, H200) for s, top1 in enumerate(on_gpu)]
    found = stats.ttest_ind(on_cpu, on_gpu, equal_var=False)
    low, high = found.confidence_interval(0.95)
    assert machine_notes(runs, [], ["resnet20"])[1] == (
        "resnet20 on cpu with torch 2.15 against NVIDIA H200 with torch 2.11: -1.97 points "
        f"(95% {low:.2f} to {high:.2f}, 3 and 3 seeds): it matters: compare within one kind."
    )


def test_seeds_run_on_both_are_compared_by_pairs():
    tops = [60.0, 62.4, 58.1]
    runs = [run(seed, top1) for seed, top1 in enumerate(tops)]
    repeats = [run(seed, top1 + 0.1 * (-1) ** seed, H200) for seed, top1 in enumerate(tops)]
    notes = machine_notes(runs, repeats, ["resnet20"])
    assert len(notes) == 1  # all that count are of one kind
    assert "3 seeds run on both" in notes[0]
    assert "no sign that it matters" in notes[0]
    assert "-0.033 points" in notes[0]


def test_only_plain_networks_tell():
    runs = [run(s, 60.0 + s, label="resnet20 + se") for s in range(3)]
    runs += [run(s + 3, 70.0 + s, H200, "resnet20 + se") for s in range(3)]
    assert "cannot be tested" in machine_notes(runs, [], ["resnet20"])[1]


def test_runs_that_are_all_alike_leave_no_interval_and_no_warning(recwarn):
    runs = [run(s, 60.0) for s in range(2)] + [run(s + 2, 60.0, H200) for s in range(2)]
    assert "0.00 points with each of 2 and 2 seeds" in machine_notes(runs, [], ["resnet20"])[1]
    assert not recwarn.list
