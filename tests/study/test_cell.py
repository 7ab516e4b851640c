import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csham.data.batches import Batches
from csham.errors import UserError
from csham.files import SUMS
from csham.study.cell import CellRunner, adopt_runs
from csham.study.grid import Network
from csham.study.record import read_line
from csham.study.store import Store
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.interrupt import InterruptedRunError
from csham.training.loop import train
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder

MACHINE = {"device": "cpu", "compile": False}


class Notes(QuietProgress):
    def __init__(self, stop_after=0):
        self.notes, self.left = [], stop_after

    def note(self, text):
        self.notes.append(text)

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture(scope="module")
def done(images_study, tmp_path_factory):
    """A store whose first cell is done, and its record."""
    store = Store(tmp_path_factory.mktemp("done"))
    with store.changing_study():
        store.write_study(images_study)
    return store, CellRunner(store, MACHINE).run(images_study.cells()[0].key)


def weights(store, cell, name="last"):
    return load_checkpoint(store.run_folder(cell.name) / "checkpoints" / f"{name}.ckpt")["model"]


def test_a_cell_that_stops_early_is_a_cell_and_its_record_says_where(images_study, make_store):
    settings = {**images_study.settings, "epochs": 9, "lr": 1e-12, "weight_decay": 0.0, "patience": 2}
    store = make_store(settings=settings)
    cell = store.study.cells()[0]
    assert cell.key not in {cell.key for cell in replace(images_study, settings={**settings, "patience": 3}).cells()}
    record = CellRunner(store, MACHINE).run(cell.key)
    assert (record["config"]["epochs"], record["result"]["epochs"], len(record["history"])) == (9, 3, 3)
    assert record["result"]["stopped_early"] == {"planned": 9, "patience": 2}
    old = {**json.loads(json.dumps(record)), "format": 1}
    assert read_line(json.dumps(old).encode()).record == old  # of a line without a sum nothing contradicts itself
    longer = old | {"history": [*old["history"], {**old["history"][-1], "epoch": 4}]}
    assert "epochs is 3, and its history has 4" in read_line(json.dumps(longer).encode()).fault
    impatient = old | {"config": {**old["config"], "patience": 1}}
    assert "its history has 3 epochs, and its patience makes 2" in read_line(json.dumps(impatient).encode()).fault


def test_the_record_holds_what_the_run_folder_does(done):
    store, record = done
    assert store.records() == [json.loads(json.dumps(record))]
    summary = json.loads((store.path / record["run"] / "summary.json").read_text())
    assert (record["status"], record["label"], record["seed"], record["attempts"]) == ("done", "lenet5", 0, 1)
    assert record["result"]["top1"] == summary["top1"]
    assert record["result"]["validation_chosen"] == summary["validation_chosen"]
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert summary["validation_chosen"]["validation_top1"] in [row["val_top1"] for row in record["history"]]
    assert all(isinstance(row["train_loss"], float) and isinstance(row["epoch"], int) for row in record["history"])
    assert record["classes"] == ["ant", "bee", "cow"]
    assert sum(record["per_class"]["total"]) == summary["images"]
    assert 100 * sum(record["per_class"]["correct"]) / summary["images"] == pytest.approx(summary["top1"], abs=1e-3)
    assert record["config"]["compile"] is False
    assert record["environment"]["threads"] == torch.get_num_threads()
    assert record["started"] <= record["finished"]


def test_records_do_not_say_where_things_lie(done, images):
    text = json.dumps(done[1])
    assert done[1]["config"]["data"] == images.name
    for place in (images, done[0].path, Path.cwd(), Path.home()):
        assert str(place) not in text


def test_a_finished_run_without_a_record_becomes_one(done, make_store, monkeypatch):
    store = make_store()
    shutil.copytree(done[0].path / "runs", store.path / "runs")
    monkeypatch.setattr("csham.study.cell.train_in_turns", lambda *_, **__: pytest.fail("trained again"))
    record = CellRunner(store, MACHINE).run(store.study.cells()[0].key)
    assert record == done[1]
    assert store.records() == [json.loads(json.dumps(record))]
    assert CellRunner(store, MACHINE).run(store.study.cells()[0].key) is None


def test_a_stopped_cell_goes_on_to_the_same_record(done, store, timeless):
    cell = store.study.cells()[0]
    with pytest.raises(InterruptedRunError):
        CellRunner(store, MACHINE, Notes(stop_after=7)).run(cell.key)
    assert store.records() == []
    assert not store.is_claimed(cell.key)
    progress = Notes()
    record = CellRunner(store, MACHINE, progress).run(cell.key)
    assert any("at epoch 2, step 2" in note for note in progress.notes)
    assert timeless(record) == timeless(done[1])
    found = weights(store, cell)
    for name, value in weights(*done_cell(done)).items():
        assert torch.equal(value, found[name])


def done_cell(done):
    return done[0], done[0].study.cells()[0]


@pytest.mark.parametrize("damage", ["empty", "half", "gone"])
def test_a_damaged_checkpoint_means_starting_again(done, store, damage, timeless):
    cell = store.study.cells()[0]
    with pytest.raises(InterruptedRunError):
        CellRunner(store, MACHINE, Notes(stop_after=1)).run(cell.key)
    path = store.run_folder(cell.name) / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    if damage == "gone":
        path.unlink()
    progress = Notes()
    record = CellRunner(store, MACHINE, progress).run(cell.key)
    assert any("lenet5, seed 0 starts again" in note for note in progress.notes)
    assert timeless(record) == timeless(done[1])


@pytest.mark.parametrize("lost", ["the last", "the optimizer too"])
def test_with_a_damaged_last_checkpoint_a_cell_goes_on_from_the_chosen_one_if_it_can(done, store, lost, timeless):
    cell = store.study.cells()[0]
    with pytest.raises(InterruptedRunError):
        CellRunner(store, MACHINE, Notes(stop_after=7)).run(cell.key)
    folder = RunFolder(store.run_folder(cell.name))
    folder.last.write_bytes(folder.last.read_bytes()[:-100])
    if lost == "the optimizer too":
        content = load_checkpoint(folder.best)
        save_checkpoint(folder.best, {name: value for name, value in content.items() if name != "optimizer"})
    progress = Notes()
    record = CellRunner(store, MACHINE, progress).run(cell.key)
    said = [note for note in progress.notes if "Going on from" in note or "starts again" in note]
    assert len(said) == 1
    assert ("best.ckpt, which is whole" in said[0]) == (lost == "the last")
    assert timeless(record) == timeless(done[1])
    found = weights(store, cell)
    for name, value in weights(*done_cell(done)).items():
        assert torch.equal(value, found[name])


def test_a_run_of_other_settings_is_not_mixed_in(done, make_store):
    store = make_store(settings={**done[0].study.settings, "epochs": 1})
    shutil.copytree(done[0].path / "runs", store.path / "runs")
    cell = store.study.cells()[0]
    before = sorted(store.path.glob("runs/**/*"))
    record = CellRunner(store, MACHINE).run(cell.key)
    assert record["status"] == "failed"
    assert "epochs is 2 there, and 1 in the study" in record["error"]["message"]
    assert sorted(store.path.glob("runs/**/*")) == before


def test_a_folder_that_is_no_run_is_left_alone(store):
    cell = store.study.cells()[0]
    precious = store.run_folder(cell.name) / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("!")
    record = CellRunner(store, MACHINE).run(cell.key)
    assert "Move it away" in record["error"]["message"]
    assert precious.read_text() == "!"


def test_a_failed_cell_is_recorded_and_can_be_tried_again(done, make_store, images, monkeypatch):
    store = make_store(settings={**done[0].study.settings, "lr": 1e30})
    cell, other = store.study.cells()[:2]
    runner = CellRunner(store, MACHINE)
    record = runner.run(cell.key)
    assert (record["status"], record["error"]["type"], record["attempts"]) == ("failed", "DivergedError", 1)
    assert "loop.py" in record["error"]["traceback"]
    text = json.dumps(record)
    assert str(images) not in text
    assert str(Path.cwd()) not in text
    assert not runner.must_restart
    assert runner.run(cell.key) is None  # not without being told to
    progress = Notes()
    again = CellRunner(store, MACHINE, progress).run(cell.key, attempts=1)
    assert again["attempts"] == 2
    assert any("starts again after it failed" in note for note in progress.notes)
    assert [r["attempts"] for r in store.records()] == [2]

    def out_of_order(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr("csham.study.cell.train_in_turns", out_of_order)
    assert runner.run(other.key)["error"]["type"] == "RuntimeError"
    assert runner.must_restart


def test_a_full_disk_is_no_cells_fault(store, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("csham.study.cell.train_in_turns", full)
    with pytest.raises(UserError, match="No space left"):
        CellRunner(store, MACHINE).run(store.study.cells()[0].key)
    assert store.records() == []


def test_other_images_than_the_study_began_with(make_store, write_images, tmp_path, images_study):
    other = write_images(tmp_path / "other", seed=1)
    store = make_store(data=replace(images_study.data, source=str(other)))
    with pytest.raises(UserError, match=r"not those that the study began with .*--study OTHER"):
        CellRunner(store, MACHINE).run(store.study.cells()[0].key)
    assert not (store.path / "runs").exists()


def test_a_machine_that_cannot_do_the_precision(make_store, images_study):
    store = make_store(settings={**images_study.settings, "precision": "fp16"})
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        CellRunner(store, MACHINE).run(store.study.cells()[0].key)


def test_cells_go_on_where_the_images_moved_to(make_store, images, tmp_path, images_study):
    store = make_store()
    cell = store.study.cells()[0]
    with pytest.raises(InterruptedRunError):
        CellRunner(store, MACHINE, Notes(stop_after=7)).run(cell.key)
    shutil.copytree(images, tmp_path / "moved")
    with store.changing_study():
        store.write_study(replace(store.study, data=replace(images_study.data, source=str(tmp_path / "moved"))))
    progress = Notes()
    assert CellRunner(store, MACHINE, progress).run(cell.key)["status"] == "done"
    assert any("at epoch 2, step 2" in note for note in progress.notes)


def test_runs_trained_by_hand_are_adopted_by_settings_and_content(done, make_store, images, tmp_path, timeless):
    shutil.copytree(images, tmp_path / "copy")
    by_hand = replace(done[0].study.cells()[0].config, data=str(tmp_path / "copy"), **MACHINE)
    train(by_hand, run=tmp_path / "hand" / "mine")
    train(replace(by_hand, lr=0.06, epochs=1), run=tmp_path / "hand" / "other")
    shutil.copytree(tmp_path / "hand" / "mine", tmp_path / "hand" / "unfinished")
    (tmp_path / "hand" / "unfinished" / "summary.json").unlink()
    store, said = make_store(), []
    assert adopt_runs(store, tmp_path / "hand", said.append) == store.study.cells()[:1]
    assert [line.partition(" is ")[2] for line in said] == [
        "lenet5, seed 0 now",
        "left out: its settings or its data are those of no cell",
        "not finished: left out",
    ]
    record = store.records()[0]
    assert record["config"]["data"] == images.name
    assert str(tmp_path) not in json.dumps(record)
    assert timeless(record) == timeless(done[1])
    assert adopt_runs(store, tmp_path / "hand" / "mine", said.append) == []
    assert "is done or under way" in said[-1]
    with pytest.raises(UserError, match="no run folder"):
        adopt_runs(store, tmp_path / "nowhere", said.append)


@pytest.mark.slow
def test_one_seed_gives_every_network_the_same_backbone_batches_and_crops(make_store, monkeypatch):
    names = [("none", "sequential"), ("se", "sequential"), ("cbam", "sequential"), ("csham", "transfer")]
    networks = tuple(Network("resnet20", *name) for name in names)
    store = make_store(networks=networks)
    seen = {}

    class FirstSteps(QuietProgress):
        """Keeps the weights that a run folder begins with, and ends the run after three steps."""

        def start(self, done, total):
            seen[cell.network, cell.seed] = (weights(store, cell), [])

        def step(self, where, done, loss, images_per_s):
            if len(seen[cell.network, cell.seed][1]) == 3:
                raise RuntimeError("enough")

    def record_batch(self, epoch, index, make=Batches.batch):
        batch = make(self, epoch, index)
        seen[cell.network, cell.seed][1].append((batch.images.clone(), batch.labels.clone()))
        return batch

    monkeypatch.setattr(Batches, "batch", record_batch)
    runner = CellRunner(store, MACHINE, FirstSteps())
    for cell in store.study.cells():
        assert runner.run(cell.key)["error"]["message"] == "enough"
    for seed in (0, 1):
        plain, plain_batches = seen[networks[0], seed]
        assert len(plain_batches) == 3
        for network in networks[1:]:
            first, batches = seen[network, seed]
            assert set(plain) < set(first)
            assert all(torch.equal(value, first[name]) for name, value in plain.items()), network.label
            for (images, labels), (theirs, their_labels) in zip(plain_batches, batches, strict=True):
                assert torch.equal(images, theirs)
                assert torch.equal(labels, their_labels)
    (first, batches), (second, other_batches) = seen[networks[0], 0], seen[networks[0], 1]
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])
    assert not torch.equal(batches[0][0], other_batches[0][0])


def damaged(folder, damage):
    """Change a file of a finished run so that it cannot be told from one that was written so."""
    name, old, new = damage
    path = folder / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1) if new is not None else content[: len(content) // 2])


DAMAGES = {
    "summary cut": ("summary.json", b"{", None),
    "summary changed": ("summary.json", b'"top1": ', b'"top1": 1'),
    "summary too deep": ("summary.json", b"{", b"[" * 100_000),
    "history changed": ("metrics.csv", b"\n1,", b"\n7,"),
    "answers changed": ("confusion.csv", b"\nbee,", b"\nbee,9"),
    "environment cut": ("environment.json", b"{", None),
    "settings cut": ("config.yaml", b"seed: 0", None),
    "checkpoint changed": ("checkpoints/last.ckpt", b"PK", b"QK"),
}


@pytest.mark.parametrize(
    ("damage", "sums"), [*((name, True) for name in DAMAGES), ("summary changed", False), ("answers changed", False)]
)
def test_a_finished_run_that_was_damaged_blocks_nothing_and_is_not_believed(done, make_store, damage, sums, timeless):
    store = make_store()
    shutil.copytree(done[0].path / "runs", store.path / "runs")
    cell = store.study.cells()[0]
    folder = store.run_folder(cell.name)
    if not sums:
        (folder / SUMS).unlink()
    if damage == "checkpoint changed":  # and there is no other
        (folder / "checkpoints/best.ckpt").unlink()
    damaged(folder, DAMAGES[damage])
    progress = Notes()
    record = CellRunner(store, MACHINE, progress).run(cell.key)
    assert timeless(record) == timeless(done[1])
    said = [note for note in progress.notes if "lenet5, seed 0 is measured again: " in note or "trained again" in note]
    assert said, progress.notes
    aside = list((store.path / "runs").glob("*.damaged-*"))
    assert bool(aside) == ("trained again" in said[-1])
    assert (len(aside) == 0) == (damage.startswith(("summary", "history", "answers")))


def test_a_run_by_hand_that_was_changed_is_not_adopted(done, make_store, tmp_path):
    shutil.copytree(done[0].path / done[1]["run"], tmp_path / "hand" / "mine")
    weights = tmp_path / "hand/mine/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    store, said = make_store(), []
    assert adopt_runs(store, tmp_path / "hand", said.append) == []
    assert said == [f"{tmp_path / 'hand/mine'} is left out: its model.safetensors was changed since it was written."]
    assert store.records() == []
    assert list((store.path / "runs").glob("*")) == []
