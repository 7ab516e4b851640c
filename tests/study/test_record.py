"""A line of records.jsonl is believed as it was written, and not otherwise."""

import json
import re
from pathlib import Path

import pytest

from csham.study.record import Line, describe_error, is_number, read_line, written_line

COMMITTED = Path(__file__).parents[2] / "results/cifar100-resnet20/records.jsonl"


def record(**more):
    head = {"format": 2, "key": "a", "status": "done", "label": "lenet5", "seed": 0, "attempts": 1}
    return head | {"result": {"top1": 25.0, "loss": 0.1 + 0.2}, "run": "runs/é"} | more


@pytest.fixture(scope="module")
def old():
    """A line from before lines had sums, of a real run."""
    return json.loads(COMMITTED.read_text().splitlines()[4])


def test_a_line_comes_back_as_it_was_written():
    line = written_line(record())
    assert line.endswith(b"\n")
    assert read_line(line) == Line(record(), checked=True)


def test_what_json_lacks_is_written_as_null():
    line = written_line(record(result={"top1": 1.0, "loss": float("nan"), "pair": (float("inf"), 1.0)}))
    assert read_line(line).record["result"] == {"top1": 1.0, "loss": None, "pair": [None, 1.0]}


def test_no_changed_byte_changes_a_number():
    line = written_line(record())
    refused = 0
    for place, byte in enumerate(line[:-1]):
        for other in {byte ^ 1, byte ^ 2, byte ^ 8, byte ^ 64, ord("1"), ord("f"), 0} - {byte}:
            read = read_line(line[:place] + bytes([other]) + line[place + 1 :])
            assert read.record in (None, record()), (place, chr(other))
            assert read.record is not None or read.fault
            refused += read.record is None
    assert refused > len(line)


def test_no_cut_and_no_zeroed_block_changes_a_number():
    line = written_line(record())
    for place in range(len(line) - 1):
        assert read_line(line[:place]).torn
        assert read_line(line[place + 1 :]).record is None
        for length in (1, 16, 64):
            middle = line[place : place + length]
            assert read_line(line.replace(middle, b"\0" * len(middle), 1)).record is None


def test_a_line_of_today_without_its_sum_is_refused():
    line = json.dumps(record()).encode()
    assert "was changed since it was written" in read_line(line).fault
    assert read_line(json.dumps(record(format=1)).encode()) == Line(record(format=1), checked=False)


def test_committed_lines_are_believed_though_they_cannot_be_checked():
    lines = [read_line(line) for line in COMMITTED.read_bytes().splitlines()]
    assert len(lines) == 18
    assert {(line.fault, line.checked, line.record is None) for line in lines} == {("", False, False)}


CHANGES = {
    "top1": (("result", "top1"), 95.0, r"\(resnet20 \+ csham, seed 0\) was changed .*: top1 is 95, and its counts"),
    "recall": (("result", "recall"), 95.0, "recall is 95, and its counts per class make"),
    "top5": (("result", "top5"), 101.0, "top5 of the chosen epoch is 5.*, and of the last, the same, is 101"),
    "images": (("result", "images"), 1000, "images is 1000, and its counts per class make 10000"),
    "seconds": (("result", "seconds"), 5.0, "seconds is 5, and its history makes"),
    "rate": (("result", "images_per_s"), 5000.0, "images_per_s is 5000, and its history makes"),
    "count": (("per_class", "correct", 7), 0, "top1 is .* and its counts per class make"),
    "total": (("per_class", "total", 7), 101, "its counts per class make"),
    "chosen top1": (("result", "validation_chosen", "top1"), 95.0, "top1 of the chosen epoch is 95, and of the last"),
    "validation": (("result", "validation_chosen", "validation_top1"), 95.0, "validation_top1 is 95, and the best"),
    "history": (("history", 0, "val_top1"), 95.0, "the best of its history is 95"),
    "epoch": (("history", 1, "epoch"), 3, "the epoch of a row of its history is 3, and its place is 2"),
    "epochs": (("config", "epochs"), 30, "epochs is 30, and its history has 2"),
    "lr": (("config", "lr"), 0.3, "its settings and data are not those of its key"),
    "fingerprint": (("data", "fingerprint"), "f" * 64, "its settings and data are not those of its key"),
    "seed": (("seed",), 7, "seed is both 0 and 7"),
    "attention": (("network", "attention"), "se", "attention is both 'csham' and 'se'"),
    "label": (("label",), "resnet20 + se", r"its network is resnet20 \+ csham"),
    "key": (("key",), "0" * 16, "its settings and data are not those of its key"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_line_without_a_sum_is_compared_with_itself(old, change):
    place, value, expected = CHANGES[change]
    changed = json.loads(json.dumps(old))
    inner = changed
    for step in place[:-1]:
        inner = inner[step]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    line = read_line(json.dumps(changed).encode())
    assert line.record is None
    assert not line.torn
    assert re.search(expected, line.fault), line.fault


@pytest.mark.parametrize("value", [-1, 101])
def test_no_share_is_below_0_or_above_100_percent(old, value):
    result = {**old["result"], "top5": value, "validation_chosen": None}
    assert read_line(json.dumps(old | {"result": result}).encode()).fault.endswith(f"top5 is {value}%")


WRONG = [
    *({name: value} for name in ("network", "data", "config", "result", "environment", "error") for value in (5, [1])),
    {"classes": 3}, {"classes": [1]}, {"history": {"epoch": 1}}, {"history": [1]}, {"attempts": "1"},
    {"attempts": True},
    {"per_class": [1]}, {"per_class": {"correct": [1]}}, {"per_class": {"correct": [2], "total": [1]}},
    {"per_class": {"correct": [1], "total": [1]}, "classes": ["a", "b"]}, {"per_class": {"correct": "1", "total": "1"}},
    {"result": {"validation_chosen": 5}}, {"result": {"machine": "cpu"}}, {"environment": {"versions": ["torch"]}},
    {"per_class": {"correct": [1], "total": [10**400]}},
    {"seed": 1.5}, {"key": None}, {"label": ["a"]}, {"status": "perhaps"}, {"format": True},
    {"result": {}}, {"result": {"top1": None}}, {"result": {"top1": "25"}}, {"result": {"top1": 10**400}},
]  # fmt: skip


@pytest.mark.parametrize("part", WRONG, ids=str)
def test_a_part_that_cannot_be_makes_a_line_no_record(part):
    old = record(format=1) | part
    assert read_line(json.dumps(old).encode()) == Line(None, fault="is not a record", torn=True)
    with pytest.raises(ValueError, match="not a record"):
        written_line(old)


@pytest.mark.parametrize("name", ["top1", "images", "seconds", "epochs"])
def test_a_number_beyond_all_floats_is_none(old, name):
    line = json.dumps(old | {"result": old["result"] | {name: 10**400}}).encode()
    read = read_line(line)
    assert read.fault if read.record is None else not is_number(read.record["result"][name])


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"a":' * 100_000, b"", b"5", b"null", b"\xff\xfe", b'{"key": "a", "key": "b"}', b"NaN"],
    ids=lambda line: str(line[:9]),
)
def test_anything_else_is_no_record(line):
    assert read_line(line) == Line(None, fault="is not a record", torn=True)


def test_an_error_leaves_the_home_folder_out_where_there_is_one(make_study, monkeypatch):
    error, study = ValueError("/somewhere/me/x is no image"), make_study()
    monkeypatch.setenv("HOME", "/somewhere/me")
    assert describe_error(error, study)["message"] == "~/x is no image"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # a user that the system does not know
    assert describe_error(error, study)["message"] == str(error)
