import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from csham.errors import UserError
from csham.study.store import Store


def record(key, seed=0, status="done", **more):
    return {"format": 1, "key": key, "status": status, "label": "lenet5", "seed": seed, "attempts": 1} | more


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store(make_study, tmp_path, notes):
    found = Store(tmp_path / "study", notes.append)
    with found.changing_study():
        found.write_study(make_study())
    return found


def test_a_study_is_there_once_its_plan_is_written(store, tmp_path):
    assert store.exists
    assert not Store(tmp_path / "nowhere").exists
    (tmp_path / "empty").mkdir()
    assert not Store(tmp_path / "empty").exists


def test_records_come_back_the_last_of_each_cell(store):
    assert store.records() == []
    store.append(record("a", status="failed"))
    store.append(record("b"))
    store.append(record("a", attempts=2))
    assert store.records() == [record("a", attempts=2), record("b")]
    assert len(store.records_file.read_text().splitlines()) == 3


def test_what_json_lacks_is_written_as_null(store):
    store.append(record("a", result={"loss": float("nan"), "top1": (float("inf"), 1.0)}))
    assert store.records()[0]["result"] == {"loss": None, "top1": [None, 1.0]}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_moved_aside(store, notes, cut):
    store.append(record("a"))
    store.append(record("b"))
    whole = store.records_file.read_bytes()
    store.records_file.write_bytes(whole[:-cut])
    assert [r["key"] for r in Store(store.path).records()] == (["a", "b"] if cut == 1 else ["a"])
    assert notes == []  # a reader leaves everything as it is
    store.append(record("c"))
    assert [r["key"] for r in store.records()] == (["a", "b", "c"] if cut == 1 else ["a", "c"])
    assert all(json.loads(line) for line in store.records_file.read_text().splitlines())
    torn = list(store.path.glob("records.torn-*"))
    if cut == 1:  # only the newline was missing: nothing is lost
        assert not torn
        assert not notes
    else:
        lines = whole.splitlines(keepends=True)
        assert torn[0].read_bytes() == lines[1][:-cut]
        assert len(notes) == 1
        assert torn[0].name in notes[0]


NO_RECORDS = [
    b"garbage\n",
    b"\x00\xff\x00\n",
    b"\n",
    b'{"half": 1}\n',
    b'{"format": 1, "key": "b", "label": "lenet5", "seed": 0, "status": "perhaps"}\n',
    b'{"format": 1, "key": "b", "label": "lenet5", "seed": "0", "status": "done"}\n',
    b'{"format": 1, "key": "b", "label": null, "seed": 0, "status": "done"}\n',
]


@pytest.mark.parametrize("end", NO_RECORDS)
def test_a_last_line_that_is_no_record_is_moved_aside(store, notes, end):
    store.append(record("a"))
    with store.records_file.open("ab") as file:
        file.write(end)
    store.repair()
    assert [r["key"] for r in store.records()] == ["a"]
    assert next(store.path.glob("records.torn-*")).read_bytes() == end
    store.repair()
    assert len(notes) == 1


def test_a_file_of_nothing_but_a_torn_line(store):
    store.records_file.write_bytes(b'{"format": 1, "key"')
    assert store.records() == []
    store.append(record("a"))
    assert [r["key"] for r in store.records()] == ["a"]


def test_a_damaged_line_in_the_middle_is_named_and_left_out(store, notes):
    for key in "abc":
        store.append(record(key))
    lines = store.records_file.read_text().splitlines()
    lines[1] = lines[1][:-5]
    store.records_file.write_text("\n".join(lines) + "\n")
    assert [r["key"] for r in store.records()] == ["a", "c"]
    store.records()
    assert len(notes) == 1
    assert "records.jsonl, line 2 is not a record" in notes[0]
    with pytest.warns(UserWarning, match="line 2"):
        Store(store.path).records()


def test_a_record_of_a_later_version_is_refused(store):
    store.append(record("a") | {"format": 2})
    with pytest.raises(UserError, match=r"line 1 has format 2"):
        store.records()


def test_a_claim_excludes_others_until_it_is_released(store):
    claim = store.claim("a")
    assert claim is not None
    assert store.claim("a") is None
    assert Store(store.path).claim("a") is None
    assert store.is_claimed("a")
    assert not store.is_claimed("b")
    with claim:
        pass
    assert not store.is_claimed("a")
    assert store.claim("a") is not None


def test_a_claim_looks_at_the_records_after_it_was_taken(store):
    store.append(record("a"))
    assert store.claim("a") is None
    store.append(record("b", status="failed"))
    assert store.claim("b") is None  # somebody failed it since the caller looked
    with store.claim("b", attempts=1):
        pass
    store.append(record("b", status="failed", attempts=2))
    assert store.claim("b", attempts=1) is None
    assert not store.is_claimed("a")


def test_a_failure_that_counts_no_attempts_is_one(store):
    failed = record("a", status="failed")
    del failed["attempts"]
    store.append(failed)
    assert store.claim("a") is None
    assert store.claim("a", attempts=1) is not None


HOLD = """
import sys
from csham.study.store import Store
claim = Store(sys.argv[1]).claim("a")
print(claim is not None, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_lets_its_claims_go(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == "True"
        assert store.claim("a") is None
        process.kill()
        process.wait()
    assert store.claim("a") is not None


def test_many_writers_and_a_reader_at_once(store):
    def write(name):
        mine = Store(store.path)
        for number in range(20):
            mine.append(record(f"{name}{number}", text="x" * 5000))

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        Store(store.path, pytest.fail).records()
    assert len(store.records()) == 80


def test_a_full_disk_leaves_whole_lines(store, monkeypatch):
    store.append(record("a"))
    before = store.records_file.read_bytes()
    write = os.write

    def half(handle, data):
        return write(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(UserError, match="is full"):
        store.append(record("b"))
    assert store.records_file.read_bytes() == before


def test_a_folder_that_cannot_be_written(store, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system", str(store.records_file))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"cannot write .*: Read-only file system. Another place: --study DIR"):
        store.append(record("a"))


def test_a_folder_without_permission(store, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"cannot write .*locks: Permission denied"):
        store.claim("a")
