"""Stores of one study that several machines made become one, and nothing is counted twice or lost."""

import json
import shutil

import pytest

from csham.errors import UserError
from csham.files import summed
from csham.study.merging import merge_records
from csham.study.run import compare
from csham.study.setup import Request
from csham.study.store import Store


def done(study, cell, top1, *, started="2026-11-27T10:00:00+0000", device="cpu", torch="2.15.0", **environment):
    return {
        "format": 2,
        "key": cell.key,
        "status": "done",
        "label": cell.network.label,
        "network": cell.network.to_dict(),
        "seed": cell.seed,
        "data": {"fingerprint": study.data.fingerprint},
        "config": cell.config.to_dict(),
        "result": {"top1": top1, "images": 10_000},
        "environment": {"device": device, "versions": {"torch": torch}, "threads": 2} | environment,
        "started": started,
        "attempts": 1,
    }


@pytest.fixture
def study(make_study):
    return make_study(seeds=range(5))


@pytest.fixture
def stores(study, tmp_path):
    """Three empty stores of the study."""
    found = [Store(tmp_path / name) for name in ("ours", "theirs", "third")]
    for store in found:
        with store.changing_study():
            store.write_study(study)
    return found


def tops(store):
    return {(r["label"], r["seed"]): r["result"]["top1"] for r in store.records() if r["status"] == "done"}


def test_cells_of_other_stores_are_taken_over(study, stores):
    ours, theirs, third = stores
    cells, notes = study.cells(), []
    for store, part in ((ours, cells[:3]), (theirs, cells[3:5]), (third, cells[5:])):
        for number, cell in enumerate(part):
            store.append(done(study, cell, 60.0 + number))
    before = theirs.records_file.read_bytes()
    merge_records(ours, [theirs.path, third.records_file], notes.append)
    assert len(tops(ours)) == len(cells)
    assert theirs.records_file.read_bytes() == before
    assert notes == [f"{theirs.path}: 2 taken over", f"{third.path}: 5 taken over"]
    assert not ours.repeats()


def test_lines_without_sums_get_none_by_moving(study, stores):
    ours, theirs, third = stores
    old = [done(study, cell, 60.0) | {"format": 1} for cell in study.cells()[:2]]
    theirs.records_file.write_text(json.dumps(old[0]) + "\n")
    theirs.repeats_file.write_text(json.dumps(old[1]) + "\n")
    theirs.append(done(study, study.cells()[2], 60.0))
    merge_records(ours, [theirs.path], lambda text: None)
    assert "2 lines of" in ours.unchecked()
    assert ["sum" in json.loads(line) for line in ours.records_file.read_text().splitlines()] == [False, True, False]
    third.append(done(study, study.cells()[0], 60.1))
    merge_records(third, [theirs.path], lambda text: None)
    (kept,) = third.repeats_file.read_text().splitlines()
    assert json.loads(kept) == old[0]


def test_what_was_merged_is_known_the_next_time(study, stores):
    ours, theirs, _ = stores
    for cell in study.cells():
        theirs.append(done(study, cell, 60.0))
    merge_records(ours, [theirs.path], lambda text: None)
    content, notes = ours.records_file.read_bytes(), []
    merge_records(ours, [theirs.path], notes.append)
    assert ours.records_file.read_bytes() == content
    assert notes == [f"{theirs.path}: 10 known already"]


def test_a_cell_that_is_done_stays_whatever_its_result_elsewhere(study, stores):
    ours, theirs, third = stores
    cell = study.cells()[0]
    ours.append(done(study, cell, 60.0))
    for store, top1 in ((theirs, 60.6), (third, 59.4)):
        store.append(done(study, cell, top1, started="2026-11-27T11:00:00+0000", device="NVIDIA H200"))
    for _ in range(2):
        merge_records(ours, [theirs.path, third.path], lambda text: None)
    assert tops(ours) == {(cell.network.label, 0): 60.0}
    assert [record["result"]["top1"] for record in ours.repeats()] == [60.6, 59.4]
    merge_records(third, [ours.path], lambda text: None)  # what was kept beside travels on
    assert [record["result"]["top1"] for record in third.repeats()] == [60.0, 60.6]


@pytest.mark.parametrize(
    ("top1", "machine", "said"),
    [
        (61.0, {"device": "NVIDIA H200"}, None),
        (70.0, {"device": "NVIDIA H200"}, "farther apart"),
        (60.0, {}, None),
        (60.3, {}, "same kind of machine"),
        (60.3, {"threads": 4}, None),
    ],
)
def test_two_runs_of_one_cell_are_checked_against_each_other(study, stores, top1, machine, said):
    ours, theirs, _ = stores
    cell, notes = study.cells()[0], []
    ours.append(done(study, cell, 60.0))
    theirs.append(done(study, cell, top1, started="2026-11-27T11:00:00+0000", **machine))
    merge_records(ours, [theirs.path], notes.append)
    assert len(ours.repeats()) == 1
    told = [note for note in notes if note.startswith(cell.label)]
    assert (len(told) == 1 and said in told[0]) if said else not told


def test_a_failed_cell_is_done_once_another_machine_did_it(study, stores):
    ours, theirs, _ = stores
    cell = study.cells()[0]
    ours.append(done(study, cell, 60.0) | {"status": "failed", "attempts": 2})
    theirs.append(done(study, cell, 61.0))
    merge_records(ours, [theirs.path], lambda text: None)
    assert tops(ours) == {(cell.network.label, 0): 61.0}


def test_failures_elsewhere_and_cells_under_way_here_are_left(study, stores):
    ours, theirs, _ = stores
    first, second = study.cells()[:2]
    theirs.append(done(study, first, 60.0) | {"status": "failed"})
    theirs.append(done(study, second, 60.0))
    notes, claim = [], ours.claim(second.key)
    with claim:
        merge_records(ours, [theirs.path], notes.append)
    assert not tops(ours)
    assert notes == [f"{theirs.path}: 1 under way here"]


def test_stores_of_other_settings_are_refused_and_other_networks_told(study, stores, make_study):
    ours, theirs, third = stores
    other = make_study(seeds=range(5), lr=0.5)
    theirs.append(done(other, other.cells()[0], 60.0))
    with pytest.raises(UserError, match=r"lr is 0\.5 there, and .* in the study. Only stores of one study"):
        merge_records(ours, [theirs.path], lambda text: None)
    larger, notes = make_study(seeds=range(6)), []
    third.append(done(larger, larger.cells()[-1], 60.0))
    merge_records(ours, [third.path], notes.append)
    assert "1 record of networks or seeds that study.yaml does not name is left out; more --seeds" in notes[0]
    assert notes[1] == f"{third.path}: no finished cells"


def test_more_seeds_are_no_way_in_for_records_of_other_settings(study, stores, make_study):
    ours, theirs, _ = stores
    other, notes = make_study(seeds=[7, 8], lr=0.5), []
    for cell in other.cells():
        theirs.append(done(other, cell, 60.0))
    merge_records(ours, [theirs.path], notes.append)
    assert "4 records of networks or seeds that study.yaml does not name are left out, of other settings" in notes[0]
    assert "lr is 0.5 there" in notes[0]
    assert "more --seeds" not in notes[0]


def test_one_store_that_is_refused_leaves_the_others_unmerged(study, stores, make_study):
    ours, theirs, third = stores
    other = make_study(seeds=range(5), lr=0.5)
    theirs.append(done(study, study.cells()[0], 60.0))
    third.append(done(other, other.cells()[0], 60.0))
    with pytest.raises(UserError, match="Only stores of one study"):
        merge_records(ours, [theirs.path, third.path], lambda text: None)
    assert not ours.records_file.exists()
    third.records_file.write_text("")
    third.repeats_file.write_text(json.dumps(summed({"format": 3})) + "\n")
    with pytest.raises(UserError, match=r"repeats\.jsonl, line 1 has format 3"):
        merge_records(ours, [theirs.path, third.path], lambda text: None)
    assert not ours.records_file.exists()


def test_what_is_no_other_store_is_refused(stores, tmp_path):
    ours, theirs, _ = stores
    ours.append({"format": 2, "key": "a", "status": "failed", "label": "x", "seed": 0})
    with pytest.raises(UserError, match="there are no records"):
        merge_records(ours, [theirs.path], lambda text: None)
    with pytest.raises(UserError, match="is the study itself"):
        merge_records(ours, [ours.path], lambda text: None)
    with pytest.raises(UserError, match="there are no records"):
        merge_records(ours, [tmp_path / "nowhere"], lambda text: None)


def test_a_changed_line_is_not_taken_over(study, stores):
    ours, theirs, _ = stores
    theirs.append(done(study, study.cells()[0], 60.0))
    theirs.records_file.write_text(theirs.records_file.read_text().replace("60.0", "69.0"))
    notes = []
    merge_records(ours, [Store(theirs.path).path], notes.append)
    assert not tops(ours)
    assert "was changed since it was written" in notes[0]


@pytest.mark.parametrize("result", [{}, {"result": {"top1": None, "images": 10_000}}])
def test_a_finished_record_without_a_top1_is_left_out(study, stores, result):
    ours, theirs, _ = stores
    cells, notes = study.cells(), []
    for cell in cells[:2]:
        theirs.append(done(study, cell, 60.0))
    ours.append(done(study, cells[0], 61.0))
    lines = theirs.records_file.read_text().splitlines()
    record = json.loads(lines[0])
    del record["result"], record["sum"]
    lines[0] = json.dumps(summed(record | result) if result else record | {"format": 1})
    theirs.records_file.write_text("\n".join(lines) + "\n")
    shutil.copy(theirs.records_file, theirs.repeats_file)
    merge_records(ours, [theirs.path], notes.append)
    assert notes[0].startswith(f"{theirs.records_file}, line 1 is not a record, and is left out")
    assert notes[1] == f"{theirs.repeats_file}, line 1 is not a record, and is left out."
    assert list(tops(ours).values()) == [61.0, 60.0]
    assert not ours.repeats_file.exists()


@pytest.mark.parametrize("end", [b'{"format": 2, "key', b"\0" * 5000])
def test_a_copy_that_is_cut_off_is_told(study, stores, end):
    ours, theirs, _ = stores
    notes = []
    theirs.append(done(study, study.cells()[0], 60.0))
    with theirs.records_file.open("ab") as file:
        file.write(end)
    merge_records(ours, [theirs.path], notes.append)
    assert notes == [
        f"{theirs.records_file}: its last line is cut off, and is left out. Is the copy complete?",
        f"{theirs.path}: 1 taken over",
    ]


def test_records_copied_without_their_study_are_not_mended_where_they_lie(stores):
    ours, theirs, _ = stores
    (theirs.path / "study.yaml").unlink()
    theirs.records_file.write_text("half\n")
    notes = []
    merge_records(ours, [theirs.path], notes.append)
    assert "line 1 is not a record, and is left out. Copy the file again; if that does not help" in notes[0]
    assert str(theirs.path) not in notes[0].partition("left out")[2]


def test_a_changed_repeat_is_told_and_left_out(study, stores):
    ours, _, _ = stores
    ours.append_repeat(done(study, study.cells()[0], 60.0))
    ours.repeats_file.write_text(ours.repeats_file.read_text().replace("60.0", "69.0"))
    notes = []
    assert Store(ours.path, notes.append).repeats() == []
    assert "repeats.jsonl, line 1" in notes[0]


def test_a_plan_is_written_and_stores_are_put_together_without_training(study, stores, tmp_path):
    request = Request(
        data="digits",
        folder=tmp_path / "plan",
        backbones=["lenet5"],
        attentions=["none", "se"],
        seeds=(0, 1),
        settings={"epochs": 1},
    )
    finished = compare(request, training=False, quiet=True)
    assert finished.store.exists
    assert not finished.records
    assert len(finished.missing) == 4
    assert not (finished.store.path / "runs").exists()
    plan = finished.store.study
    _, theirs, _ = stores
    for cell in plan.cells():
        theirs.append(done(plan, cell, 60.0))
    again = compare(Request(folder=tmp_path / "plan"), training=False, merge=[theirs.path], quiet=True)
    assert not again.missing
    assert json.loads(again.store.records_file.read_text().splitlines()[0])["sum"]
