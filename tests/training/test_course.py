"""A run's end before its last planned epoch, and epochs added after it."""

import csv
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import yaml

from csham.errors import UserError
from csham.files import SUMS
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.config import TrainConfig, read_settings, resolve
from csham.training.course import last_epoch, with_more_epochs, words_on_course
from csham.training.interrupt import InterruptedRunError
from csham.training.loop import resume, train
from csham.training.network import held_weights
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder, weights_of_run
from csham.training.steps import learning_rate, steps_notes


class Stopping(QuietProgress):
    """Sends this process a signal after some steps, and remembers what is said."""

    def __init__(self, after=0):
        self.left, self.notes = after, []

    def note(self, text):
        self.notes.append(text)

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def config(**given):
    return TrainConfig(data="digits", **given)


@pytest.fixture
def small(settings):
    return {**settings, "backbone": "lenet5"}


@pytest.fixture
def still(small):
    """Settings of a run that learns nothing, so that its first epoch stays the best."""
    return {**small, "lr": 1e-12, "weight_decay": 0.0, "epochs": 9, "patience": 2}


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]


def same_results(run, expected):
    """Compare everything but the clock, bit by bit."""
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(path / f"checkpoints/{name}.ckpt") for path in (run, expected))
        assert (ours["epoch"], ours["best"]) == (theirs["epoch"], theirs["best"])
        assert all(torch.equal(value, theirs["model"][key]) for key, value in ours["model"].items())
        state, other = ours["optimizer"]["state"], theirs["optimizer"]["state"]
        assert all(torch.equal(value["momentum_buffer"], other[key]["momentum_buffer"]) for key, value in state.items())
    assert rows_of(run) == rows_of(expected)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, expected)]
    for summary in summaries:
        for name in ("run", "seconds", "images_per_s"):
            del summary[name]
    assert summaries[0] == summaries[1]
    assert (run / "confusion.csv").read_text() == (expected / "confusion.csv").read_text()
    assert RunFolder(run).read_config().to_dict() == RunFolder(expected).read_config().to_dict()


@pytest.mark.parametrize(
    ("patience", "values", "end"),
    [
        (None, [50, 40, 30, 20], 6),
        (2, [50, 60, 55, 60, 70], 4),  # as good is not better
        (2, [50, 60, 55, 61, 61, 61], 6),
        (1, [50, 50], 2),
        (2, [50, 40, 60, 50, 70, 60], 6),
        (9, [1, 1, 1, 1, 1, 1], 6),
        (3, [], 6),
    ],
)
def test_the_epoch_after_which_a_history_ends(patience, values, end):
    assert last_epoch(config(epochs=6, patience=patience), values) == end


def test_a_run_without_a_better_epoch_stops_early_and_says_so(still, tmp_path):
    run, said = tmp_path / "run", Stopping()
    summary = train(resolve(still), run=run, progress=said)
    assert (summary["epochs"], summary["validation_chosen"]["epoch"]) == (3, 1)
    assert summary["stopped_early"] == {"planned": 9, "patience": 2}
    assert summary["course"] == "3 of 9 epochs"
    assert "stopped early after epoch 3: no better validation top-1 since 1" in said.notes
    assert any("--patience 2 may stop before the learning rate is down: one-cycle" in note for note in said.notes)
    folder = RunFolder(run)
    assert folder.read_summary() == summary  # and it agrees with the other files
    assert [row["epoch"] for row in rows_of(run)] == ["1", "2", "3"]
    assert str(held_weights(folder.weights)) == "last epoch (3)"
    assert str(weights_of_run(folder, "best")) == "chosen (epoch 1)"
    # The rate is that of nine planned epochs.
    assert float(rows_of(run)[1]["lr"]) == pytest.approx(learning_rate(config(epochs=9, lr=1e-12), 11, 6))


def test_a_run_that_stopped_early_is_over_wherever_it_was_killed(still, tmp_path):
    whole, run, said = tmp_path / "whole", tmp_path / "run", Stopping()
    train(resolve(still), run=whole)
    with pytest.raises(InterruptedRunError):
        train(resolve(still), run=run, progress=Stopping(14))  # in the third epoch
    resume(run)
    same_results(run, whole)
    (run / "summary.json").unlink()
    resume(run, progress=said)
    same_results(run, whole)
    assert any(note.startswith("stopped early after epoch 3") for note in said.notes)


def test_a_run_that_does_not_stop_early_is_as_one_without_patience(small, tmp_path):
    summary = train(resolve({**small, "patience": 5}), run=tmp_path / "patient")
    plain = train(resolve(small), run=tmp_path / "plain")
    assert "stopped_early" not in summary
    assert "course" not in summary
    assert rows_of(tmp_path / "patient") == rows_of(tmp_path / "plain")
    assert summary["top1"] == plain["top1"]


def test_stopping_early_needs_a_validation_part(small, tmp_path):
    with pytest.raises(UserError, match=r"--patience 2 stops by the validation part, and there is none"):
        train(resolve({**small, "validation": 0.0, "patience": 2}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_does_not_come_down_needs_no_word():
    assert not [note for note in steps_notes(config(patience=2, schedule="constant"), 9000) if "patience" in note]


@pytest.mark.parametrize(
    ("added", "entry"),
    [
        ({}, "after 2 of 2 epochs: one-cycle, lr 0.05"),
        ({"schedule": "constant", "lr": 0.001}, "after 2 of 2 epochs: constant, lr 0.001"),
    ],
    ids=["again", "constant"],
)
def test_a_finished_run_goes_on_to_the_bits_of_one_that_was_never_finished(small, tmp_path, added, entry):
    run, again, said = tmp_path / "run", tmp_path / "again", Stopping()
    train(resolve(small), run=run)
    first, chosen = rows_of(run), load_checkpoint(RunFolder(run).best)["best"]
    with pytest.raises(InterruptedRunError):  # and stops in the middle of the second epoch that is added
        resume(run, epochs=4, **added, progress=(said := Stopping(9)))
    assert not RunFolder(run).finished
    settings = read_settings(run / "config.yaml")
    assert (settings["epochs"], settings["continued"], settings["lr"]) == (4, [entry], 0.05)
    shutil.copytree(run, tmp_path / "other")
    resume(run)
    resume(tmp_path / "other", epochs=4, **added)  # the same call again goes on too
    same_results(tmp_path / "other", run)

    train(resolve({}, settings), run=again)  # the file of settings makes it all at once
    same_results(run, again)
    rows, summary = rows_of(run), RunFolder(run).read_summary()
    assert rows[:2] == first
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    best = max(rows, key=lambda row: float(row["val_top1"]))
    assert summary["validation_chosen"]["epoch"] == int(best["epoch"])
    assert load_checkpoint(RunFolder(run).best)["best"]["value"] >= chosen["value"]
    assert summary["epochs"] == 4
    assert "stopped_early" not in summary
    assert str(held_weights(RunFolder(run).weights)) == "last epoch (4)"
    said_of = summary["course"]
    assert said_of.startswith("2 epochs, then 2 more (")
    assert said_of in said.notes


def test_the_rate_of_added_epochs_is_that_of_a_run_of_them():
    more = config(
        epochs=9, lr=0.2, continued=("after 3 of 3 epochs: one-cycle, lr 0.1", "after 5 of 6 epochs: constant, lr 0.01")
    )
    rates = [learning_rate(more, step, 10) for step in range(90)]
    assert rates[:30] == [learning_rate(config(epochs=3, lr=0.2), step, 10) for step in range(30)]
    # Of three epochs that were planned two were done.
    assert rates[30:50] == [learning_rate(config(epochs=3, lr=0.1), step, 10) for step in range(20)]
    assert rates[50:] == [0.01] * 40
    assert words_on_course(more, 9) == (
        "3 epochs, then 2 of 3 more (one-cycle, highest rate 0.1), then 4 more (constant, highest rate 0.01)"
    )


def test_epochs_added_to_a_run_that_stopped_early_are_all_trained_or_have_patience_of_their_own(still, tmp_path):
    run = tmp_path / "run"
    train(resolve(still), run=run)
    summary = resume(run, epochs=5)
    assert (summary["epochs"], "stopped_early" in summary) == (5, False)
    summary = resume(run, epochs=9, schedule="constant", patience=1)
    assert (summary["epochs"], summary["stopped_early"]) == (6, {"planned": 9, "patience": 1})
    assert summary["course"] == (
        "3 of 9 epochs, then 2 more (one-cycle, highest rate 1e-12), "
        "then 1 of 4 more (constant, highest rate 1e-12, patience 1)"
    )
    train(resolve({}, read_settings(run / "config.yaml")), run=tmp_path / "again")
    same_results(run, tmp_path / "again")


def test_a_continuation_whose_last_checkpoint_is_damaged_goes_on_from_the_chosen_epoch(small, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(resolve({**small, "epochs": 3}), run=run)
    shutil.copytree(run, whole)
    resume(whole, epochs=4)
    assert load_checkpoint(RunFolder(run).best)["epoch"] < 3  # so that epochs of the first stretch are trained again
    RunFolder(run).last.write_bytes(b"damaged")
    resume(run, epochs=4)
    same_results(run, whole)


def test_a_run_older_than_these_settings_goes_on_for_more_epochs(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / SUMS).unlink()
    names = ("patience", "continued")
    old = {name: value for name, value in read_settings(run / "config.yaml").items() if name not in names}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    content = load_checkpoint(RunFolder(run).last)
    content["config"] = {name: value for name, value in content["config"].items() if name not in names}
    save_checkpoint(RunFolder(run).last, content)
    assert resume(run, epochs=3)["epochs"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 2}, "leave out --epochs: 2 epochs are done, and only a larger number adds to them"),
        ({"epochs": 1}, "leave out --epochs"),
        ({"lr": 0.1}, "lr: a resumed run keeps its settings"),
        ({"schedule": "constant"}, "schedule: a resumed run keeps its settings"),
        ({"epochs": 3, "lr": -1.0}, "--lr must be above 0"),
        ({"epochs": 3, "patience": 0}, "--patience must be at least 1"),
        ({"patience": 3}, "patience: a resumed run keeps its settings"),
        ({"epochs": 3, "schedule": "cycle"}, "unknown schedule 'cycle'"),
    ],
)
def test_what_adds_no_epochs_is_refused(finished, tmp_path, given, message):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        resume(run, **given)
    assert (run / "config.yaml").read_text() == before
    assert RunFolder(run).finished


def test_a_run_under_way_has_to_end_first(small, tmp_path):
    with pytest.raises(InterruptedRunError):
        train(resolve(small), run=tmp_path / "run", progress=Stopping(8))
    with pytest.raises(UserError, match=r"is in epoch 2 of 2. Let it end first"):
        resume(tmp_path / "run", epochs=3)


def test_a_run_of_a_study_is_not_gone_on_with(finished, tmp_path):
    run = tmp_path / "study/runs/one"
    shutil.copytree(finished, run)
    (tmp_path / "study/study.yaml").write_text("")
    with pytest.raises(UserError, match=r"is a run of the study .*study, all of whose runs have as many epochs"):
        resume(run, epochs=3)


@pytest.mark.parametrize("added", [{}, {"schedule": "constant"}])
def test_data_that_changed_leaves_a_finished_run_finished(small, tmp_path, write_images, added):
    data, run = write_images(tmp_path / "animals"), tmp_path / "run"
    train(resolve({**small, "data": str(data)}), run=run)
    (data / "ant" / "0.png").unlink()
    with pytest.raises(UserError, match="it had 60 images and has 59"):
        resume(run, epochs=3, **added)
    assert RunFolder(run).finished
    assert read_settings(run / "config.yaml")["epochs"] == 2


@pytest.mark.parametrize(
    ("epochs", "continued"),
    [
        (5, "after 3 epochs"),
        (5, "after 4 of 3 epochs: constant, lr 0.1"),
        (5, "after 0 of 3 epochs: constant, lr 0.1"),
        (5, "after 3 of 3 epochs: constant, lr 0.0"),
        (5, "after 3 of 3 epochs: cyclic, lr 0.1"),
        (5, "after 3 of 3 epochs: constant, lr 0.1, patience 0"),
        (3, "after 3 of 3 epochs: constant, lr 0.1"),
        (9, "after 3 of 3 epochs: constant, lr 0.1|after 2 of 5 epochs: constant, lr 0.1"),
        (9, "after 3 of 3 epochs: constant, lr 0.1|after 5 of 3 epochs: constant, lr 0.1"),
    ],
)
def test_a_file_cannot_say_what_no_run_does(epochs, continued):
    with pytest.raises(UserError, match=r"continued|schedule|patience"):
        config(epochs=epochs, continued=tuple(continued.split("|")))


def test_a_rate_is_read_as_it_is_written(finished):
    folder = RunFolder(finished)
    more = with_more_epochs(folder, folder.read_config(), 3, lr=1 / 3e7)
    assert resolve({}, yaml.safe_load(more.to_yaml())) == more
    assert learning_rate(more, 2 * 6 + 1, 6) == learning_rate(replace(more, epochs=1, lr=1 / 3e7, continued=()), 1, 6)
