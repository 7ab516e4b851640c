import errno
import itertools
import json
import os
import subprocess
import sys
import threading

import pytest

from csham.errors import UserError
from csham.files import new_folder, summed, write_atomically
from csham.study.store import CellState, Store


def record(key, seed=0, status="done", **more):
    head = {"format": 1, "key": key, "status": status, "label": "lenet5", "seed": seed, "attempts": 1}
    return head | ({"result": {"top1": 50.0}} if status == "done" else {}) | more


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


def test_a_failure_that_was_appended_later_hides_no_result(store):
    for one in (record("a"), record("a", status="failed"), record("b", status="failed"), record("b", attempts=2)):
        store.append(one)
    assert store.records() == [record("a"), record("b", attempts=2)]


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
        assert f"line 2 was being written by a process that was killed. It is in {torn[0].name} now" in notes[0]


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


@pytest.mark.parametrize(
    ("state", "epochs", "sentence"),
    [
        ("to do", 0, "to do"),
        ("failed", 0, "failed"),
        ("cut off", 0, "cut off in epoch 1 of 3"),
        ("cut off", 1, "cut off in epoch 2 of 3"),
        ("cut off", 3, "cut off at its end"),
    ],
)
def test_a_cell_says_how_far_it_is(make_study, state, epochs, sentence):
    cell = make_study(epochs=3).cells()[0]
    assert CellState(cell, state, epochs).sentence == sentence


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


def test_of_many_damaged_lines_the_first_are_named_and_the_others_counted(store, notes):
    store.append(record("a"))
    with store.records_file.open("a") as file:
        file.writelines(["half\n"] * 9)
    assert len(store.records()) == 1
    assert [note.partition(" is ")[0] for note in notes[:-1]] == [
        f"{store.records_file}, line {number}" for number in range(2, 7)
    ]
    assert notes[-1] == f"{store.records_file}: so it is with 4 more lines."
    store.repair()
    assert notes[-1] == f"{store.records_file}: so it is with 4 more lines."
    assert len(notes) == 12


def test_a_study_whose_name_begins_with_a_dash_is_named_as_a_command_takes_it(store, monkeypatch, notes):
    monkeypatch.chdir(store.path.parent)
    (store.path.parent / "study").rename("-dash")
    dash = Store("-dash", notes.append)
    dash.records_file.write_text("half\n")
    assert dash.records() == []
    assert "csham compare --study ./-dash takes its cell" in notes[0]


def test_two_finished_runs_of_a_cell_are_told_and_the_last_counts(store, notes):
    for key, top1 in (("a", 50.0), ("b", 50.0), ("b", 50.0), ("a", 51.0)):
        store.append(record(key, result={"top1": top1}))
    for _ in range(2):
        assert [r["result"]["top1"] for r in store.records()] == [51.0, 50.0]
    assert notes == [
        f"{store.records_file}, line 4 is another finished run of lenet5, seed 0, with top-1 51.00, and 50.00 before: "
        "the last counts."
    ]


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.timeout(60)
def test_records_that_are_no_file_are_refused_and_not_waited_for(store, kind):
    if kind == "pipe":
        os.mkfifo(store.records_file)
    else:
        store.records_file.symlink_to("/dev/zero")
    for deed in (store.records, lambda: store.append(record("a"))):
        with pytest.raises(UserError, match=r"records\.jsonl: .*no file"):
            deed()


def test_a_record_of_a_later_version_is_refused(store):
    store.append(record("a") | {"format": 3})
    with pytest.raises(UserError, match=r"line 1 has format 3; this version of csham reads up to 2"):
        store.records()


def test_a_repeat_of_a_later_version_is_refused(store):
    store.repeats_file.write_text(json.dumps(summed({"format": 3, "of another": "shape"})) + "\n")
    with pytest.raises(UserError, match=r"repeats\.jsonl, line 1 has format 3; this version of csham reads up to 2"):
        store.repeats()


@pytest.mark.parametrize("cut", [1, 20])
def test_repeats_are_mended_as_records_are_before_one_is_added(store, notes, cut):
    for key in "ab":
        store.append_repeat(record(key))
    whole = store.repeats_file.read_bytes()
    store.repeats_file.write_bytes(whole[:-cut])
    store.append_repeat(record("c"))
    assert [r["key"] for r in store.repeats()] == (["a", "b", "c"] if cut == 1 else ["a", "c"])
    torn = list(store.path.glob("repeats.torn-*"))
    assert len(torn) == len(notes) == (cut != 1)
    if torn:
        assert notes[0].endswith(f"is in {torn[0].name} now.")


@pytest.mark.parametrize("number", [2, 3])
def test_a_changed_line_is_named_and_left_out_wherever_it_is(store, notes, number):
    for key in "abc":
        store.append(record(key, result={"top1": 25.0}))
    lines = store.records_file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"25.0", b"95.0")
    store.records_file.write_bytes(b"".join(lines))
    keys = [key for key in "abc" if key != "abc"[number - 1]]
    assert [r["key"] for r in store.records()] == keys
    assert (
        f"records.jsonl, line {number} (lenet5, seed 0) was changed since it was written, and is left out" in notes[0]
    )
    assert f"csham compare --study {store.path} takes its cell from its run folder, or trains it again" in notes[0]
    assert store.records_file.read_bytes() == b"".join(lines)  # a reader leaves everything as it is
    store.repair()
    (aside,) = store.path.glob("records.changed-*")
    assert aside.read_bytes() == lines[number - 1]
    assert f"line {number} (lenet5, seed 0) was changed since it was written. It is in {aside.name} now" in notes[1]
    with store.claim("abc"[number - 1]):
        store.append(record("abc"[number - 1], result={"top1": 25.0}))
    again = Store(store.path, pytest.fail)
    again.repair()
    assert {r["key"] for r in again.records()} == set("abc")


def test_a_record_of_a_later_version_is_not_moved_aside(store):
    store.records_file.write_text(json.dumps(summed({"format": 3, "of another": "shape"})) + "\n")
    before = store.records_file.read_bytes()
    Store(store.path, pytest.fail).repair()
    assert store.records_file.read_bytes() == before
    with pytest.raises(UserError, match="line 1 has format 3"):
        store.records()


def test_lines_from_before_there_were_sums_are_read_and_said_to_be_unchecked(store, notes):
    store.records_file.write_text("".join(json.dumps(record(key)) + "\n" for key in "ab"))
    store.append(record("c"))
    assert [r["key"] for r in store.records()] == ["a", "b", "c"]
    assert notes == []
    store.repair()
    store.repair()
    assert notes == [
        f"2 lines of {store.records_file} cannot be checked for changes, being from before lines had sums."
    ]


def test_the_first_line_of_a_file_lasts_as_its_name_does(store, monkeypatch):
    """The name of a file is on the disk when its folder was synced."""
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    store.append(record("a"))
    order = [store.path.stat().st_ino, store.records_file.stat().st_ino]
    assert [inode for inode in synced if inode in order][-2:] == order


def test_what_was_torn_is_on_the_disk_before_it_leaves_its_file(store, monkeypatch):
    store.append(record("a"))
    with store.records_file.open("ab") as file:
        file.write(b'{"half')

    def until_the_power_is_cut(path, write):
        if path == store.records_file:
            raise OSError(errno.EIO, "cut", str(path))
        write_atomically(path, write)

    monkeypatch.setattr("csham.study.store.write_atomically", until_the_power_is_cut)
    with pytest.raises(UserError, match="cut"):
        store.repair()
    assert next(store.path.glob("records.torn-*")).read_bytes() == b'{"half'


PAGE = 4096


def states_after_a_power_cut(before, after):
    """Give what a disk may hold of a file that was being appended to: any length, and zeros for any of its pages."""
    new = len(after) - len(before)
    for length in sorted({*range(0, new + 1, 997), 1, new - 1, new, *range(PAGE - len(before), new, PAGE)}):
        pages = range(len(before) // PAGE, -(-(len(before) + length) // PAGE))
        for lost in itertools.product((False, True), repeat=len(pages)):
            content = bytearray(after[: len(before) + length])
            for page in itertools.compress(pages, lost):
                start, end = max(page * PAGE, len(before)), min((page + 1) * PAGE, len(content))
                content[start:end] = bytes(end - start)
            yield bytes(content)


def test_whatever_a_power_cut_leaves_of_a_record_is_healed_and_taken_for_no_change(store, notes):
    store.append(record("a"))
    before = store.records_file.read_bytes()
    large = record("b", text="words " * 1700)
    store.append(large)
    after = store.records_file.read_bytes()
    states = list(states_after_a_power_cut(before, after))
    assert len(states) > 60
    for state in states:
        store.records_file.write_bytes(state)
        again = Store(store.path, notes.append)
        again.append(record("c"))
        assert again.records() in ([record("a"), large, record("c")], [record("a"), record("c")])
        assert all(json.loads(line) for line in store.records_file.read_text().splitlines())
    assert not [note for note in notes if "changed" in note]


KILLED = """
import os, sys
from pathlib import Path
from csham.files import new_folder, write_atomically
study = Path(sys.argv[1])
with new_folder(study / "report"):
    killed = lambda _: write_atomically(study / "runs/lenet5-seed0", lambda _: os._exit(9))
    write_atomically(study / "study.yaml", killed)
"""


def test_what_dead_processes_left_goes_and_what_the_living_write_stays(store):
    (store.path / "runs").mkdir()
    with new_folder(store.path / "report"):
        ours = set(store.path.rglob(".*"))
        assert subprocess.run([sys.executable, "-c", KILLED, str(store.path)], check=False).returncode == 9
        left = set(store.path.rglob(".*")) - ours
        assert {path.parent.relative_to(store.path).as_posix() for path in left} == {".", "runs"}
        assert len(left) == 3
        store.remove_leftovers()
        assert set(store.path.rglob(".*")) == ours


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


def test_a_mark_stays_as_long_as_its_process(store):
    code = HOLD.replace('claim("a")', "mark()")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().strip() == "True"
        store.remove_leftovers()
        assert len(list(store.path.glob("locks/mark-*"))) == 1
        process.kill()
        process.wait()
    store.remove_leftovers()
    assert list(store.path.glob("locks/mark-*")) == []


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
