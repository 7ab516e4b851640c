import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml

from csham.attach.installed.recomputed_norm import _NormOutput
from csham.backbones import CifarResNet
from csham.data.batches import Batches
from csham.errors import UserError
from csham.files import SUMS
from csham.training import loop
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.config import read_settings, resolve
from csham.training.evaluation import evaluate
from csham.training.interrupt import STOP_SIGNALS, TIME_IS_OVER, InterruptedRunError, StopRequest, TimeLimit
from csham.training.loop import DivergedError, resume, train, train_in_turns
from csham.training.network import read_network
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder


class Stopping(QuietProgress):
    """Sends this process a signal after some steps."""

    def __init__(self, after, signum=signal.SIGINT):
        self.left, self.signum, self.notes = after, signum, []

    def note(self, text):
        self.notes.append(text)

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)


def weights(run, name="last"):
    return load_checkpoint(RunFolder(run).path / "checkpoints" / f"{name}.ckpt")["model"]


def same_results(run, expected):
    """Compare everything but the clock, bit by bit."""
    for name in ("last", "best"):
        ours, theirs = weights(run, name), weights(expected, name)
        assert list(ours) == list(theirs)
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"
    (ours, info), (theirs, expected_info) = (read_network(path / "model.safetensors") for path in (run, expected))
    assert info == expected_info
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert timeless(run) == timeless(expected)


def timeless(run):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in epochs_of(run)]


def epochs_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_is_the_one_in_architecture_md(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith(("events.out.", "."))}
    assert names == {
        "config.yaml", "environment.json", "metrics.csv", "checkpoints", "model.safetensors", "summary.json",
        "confusion.csv", "curves.png", "csham.sha256",
    }  # fmt: skip
    assert {p.name for p in (finished / "checkpoints").iterdir()} - {".lock"} == {"last.ckpt", "best.ckpt"}
    assert list(finished.glob("events.out.*"))
    rows = timeless(finished)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"train_loss", "train_top1", "val_top1", "lr"} <= set(rows[0])
    assert not [name for name in rows[0] if "top5" in name]  # of three classes it says nothing


def test_the_summary_reports_the_last_epoch_and_the_chosen_one(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["weights"] == "last epoch"
    assert summary["top1"] == float(timeless(finished)[-1]["test_top1"])
    best = max(timeless(finished), key=lambda row: float(row["val_top1"]))
    assert summary["validation_chosen"]["epoch"] == int(best["epoch"])
    assert summary["best_test_epoch_not_for_choosing"]["top1"] >= summary["top1"]
    assert summary["params"] == sum(
        v.numel() for k, v in weights(finished).items() if "running" not in k and "num_" not in k
    )
    # Two to a multiply-add: He et al. give 41 million multiply-adds for 32 pixels, a quarter of it for 16.
    assert summary["flops_matmul"] == pytest.approx(2 * 41e6 / 4, rel=0.02)
    assert 1 < summary["flops"] / summary["flops_matmul"] < 1.05


def test_the_resolved_config_runs_again_to_the_same_bits(finished, tmp_path):
    settings = read_settings(finished / "config.yaml")
    # "auto" as a position depends on the backbone alone, not on the machine.
    assert [name for name, value in settings.items() if value == "auto"] == ["position"]
    train(resolve({}, settings), run=tmp_path / "again")
    same_results(tmp_path / "again", finished)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_stopped_run_goes_on_to_the_same_bits(settings, finished, tmp_path, signum):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError) as caught:
        train(resolve({**settings, "track_test": True}), run=run, progress=Stopping(8, signum))
    assert caught.value.signum == signum
    content = load_checkpoint(RunFolder(run).last)
    assert (content["epoch"], content["step"]) == (1, 2)
    resume(run)
    same_results(run, finished)


def test_the_seconds_of_a_run_are_those_of_its_own_turns(settings, tmp_path, monkeypatch):
    ahead, real = [0.0], time.monotonic
    monkeypatch.setattr(loop.time, "monotonic", lambda: real() + ahead[0])
    config = resolve({**settings, "epochs": 1, "checkpoint_seconds": 1e9})
    turns = train_in_turns(config, run=tmp_path / "run", stop=StopRequest())
    summary = None
    while summary is None:
        try:
            next(turns)
            ahead[0] += 1e6  # what others do meanwhile
        except StopIteration as end:
            summary = end.value
    (row,) = epochs_of(tmp_path / "run")
    assert ahead[0] > 5e6
    assert float(row["seconds"]) == pytest.approx(summary["seconds"], abs=1e-3)
    assert summary["seconds"] < 1e5


class Ticking(QuietProgress):
    """A clock that a step moves, and what the run says it needs."""

    def __init__(self, seconds):
        self.seconds, self.now, self.needed = seconds, 0.0, []

    def step(self, where, done, loss, images_per_s):
        self.now += self.seconds

    def need(self, seconds):
        self.needed.append(seconds)


def test_a_run_whose_time_is_over_has_saved_and_goes_on_to_the_same_bits(settings, finished, tmp_path):
    run, ticking = tmp_path / "run", Ticking(600.0)
    limit = TimeLimit(75, started=0.0, clock=lambda: ticking.now)  # seven steps and a half
    with pytest.raises(InterruptedRunError) as caught:
        train(resolve({**settings, "track_test": True}), run=run, progress=ticking, limit=limit)
    assert caught.value.signum == TIME_IS_OVER
    content = load_checkpoint(RunFolder(run).last)
    assert (content["epoch"], content["step"]) == (1, 2)
    assert limit.reserve == max(ticking.needed) > 0
    resume(run, limit=TimeLimit(75, started=0.0, clock=lambda: 0.0))
    same_results(run, finished)
    assert "minutes" not in (run / "config.yaml").read_text()


@pytest.fixture
def stop_measuring(monkeypatch):
    """Function that lets a signal come while a part of the data is measured, after so many others."""

    def arm(others):
        def in_order(batches):
            parts.append(batches)
            if len(parts) == others + 1:
                signal.raise_signal(signal.SIGINT)
            return real(batches)

        parts, real = [], Batches.in_order
        monkeypatch.setattr(Batches, "in_order", in_order)

    return arm


@pytest.mark.parametrize(("others", "at"), [(0, (0, 6)), (1, (0, 6)), (4, (2, 0))], ids=["validation", "test", "end"])
def test_a_run_stopped_while_it_measures_goes_on_to_the_same_bits(
    settings, finished, tmp_path, stop_measuring, others, at
):
    run = tmp_path / "run"
    stop_measuring(others)
    with pytest.raises(InterruptedRunError):
        train(resolve({**settings, "track_test": True}), run=run)
    content = load_checkpoint(RunFolder(run).last)
    assert (content["epoch"], content["step"]) == at
    resume(run)
    same_results(run, finished)


@pytest.mark.slow
def test_a_run_stopped_while_it_measures_the_chosen_weights_keeps_the_last(finished, tmp_path, stop_measuring):
    run = copy(finished, tmp_path)
    content = load_checkpoint(RunFolder(run).last)
    content["best"] = {"epoch": 1, "value": 100.0}
    save_checkpoint(RunFolder(run).last, content)
    lower = {name: value * 0.9 if value.is_floating_point() else value for name, value in content["model"].items()}
    save_checkpoint(RunFolder(run).best, content | {"model": lower})
    stop_measuring(1)
    with pytest.raises(InterruptedRunError):
        resume(run)
    assert all(torch.equal(value, weights(finished)[name]) for name, value in weights(run).items())


@pytest.mark.slow
@pytest.mark.long
def test_kill_9_in_mid_epoch_and_resume_gives_the_same_bits(settings, tmp_path):
    """The run that is killed is a process of its own; attention, gates and dropout-like draws included."""
    given = {**settings, "attention": "csham", "strategy": "transfer", "epochs": 3, "checkpoint_steps": 1}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(given))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "csham", "train", "--config", tmp_path / "settings.yaml", "--run", killed]
    process = subprocess.Popen([*map(str, command), "--quiet"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(RunFolder(killed).last, epoch=1, step=2, process=process)
    finally:
        process.kill()
        process.wait()
    content = load_checkpoint(RunFolder(killed).last)
    assert not RunFolder(killed).finished
    assert content["step"] > 0
    resume(killed)
    train(resolve(given), run=whole)
    same_results(killed, whole)


def wait_for(path, *, epoch, step, process):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, "the run ended before it could be killed"
        if path.is_file():
            content = load_checkpoint(path)
            if (content["epoch"], content["step"]) >= (epoch, step):
                return
        time.sleep(0.002)
    raise AssertionError("no checkpoint came")


@pytest.mark.slow
def test_a_run_of_larger_images_goes_on_to_the_same_bits(settings, finished, tmp_path):
    given = {**settings, "image_size": 65, "epochs": 1}
    train(resolve(given), run=tmp_path / "whole")
    assert RunFolder(tmp_path / "whole").read_config().crop == "resized"
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=tmp_path / "run", progress=Stopping(3))
    resume(tmp_path / "run")
    same_results(tmp_path / "run", tmp_path / "whole")


MIXED = {"augment": "trivial", "mixup": 0.4, "cutmix": 1.0, "class_weights": "balanced", "label_smoothing": 0.1}


@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_a_run_of_changed_and_mixed_images_goes_on_to_the_same_bits(settings, tmp_path, crop):
    given = {**settings, **MIXED, "crop": crop, "epochs": 1}
    said = Listening()
    train(resolve(given), run=tmp_path / "whole", progress=said)
    assert [note for note in said.notes if note.startswith(("training images are mixed", "class weights from 1 (ant)"))]
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=tmp_path / "run", progress=Stopping(3))
    np.random.seed(7)  # as another process would have it
    resume(tmp_path / "run")
    same_results(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", MIXED)
def test_each_of_them_changes_what_is_learnt_and_not_how_it_is_measured(settings, tmp_path, name):
    images = _uneven(settings["data"], tmp_path / "images")
    given = {**settings, "data": str(images), "epochs": 1, "backbone": "lenet5"}
    changed = {**given, name: MIXED[name]}
    for run, values in (("plain", given), ("changed", changed)):
        train(resolve(values), run=tmp_path / run)
        losses = evaluate(tmp_path / run, part="validation").predictions.losses
        assert float(epochs_of(tmp_path / run)[0]["val_loss"]) == pytest.approx(losses.mean(), rel=1e-5)
    assert not torch.equal(*(next(iter(weights(tmp_path / run).values())) for run in ("plain", "changed")))


def _uneven(images, folder):
    """Copy a folder of images without most of one class."""
    shutil.copytree(images, folder)
    for path in sorted((folder / "ant").iterdir())[8:]:
        path.unlink()
    return folder


@pytest.mark.slow
def test_a_run_older_than_a_setting_goes_on_as_it_began(settings, tmp_path):
    """Before there was a choice of crops, larger images were cut without resampling."""
    given = {**settings, "image_size": 65, "epochs": 1, "crop": "pad"}
    train(resolve(given), run=tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=run, progress=Stopping(3))
    old = {name: value for name, value in read_settings(run / "config.yaml").items() if not name.startswith("crop")}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    (run / SUMS).unlink()
    content = load_checkpoint(RunFolder(run).last)
    content["config"] = {name: value for name, value in content["config"].items() if not name.startswith("crop")}
    save_checkpoint(RunFolder(run).last, content)
    resume(run)
    same_results(run, tmp_path / "whole")


def test_a_run_killed_before_its_summary_finishes(finished, tmp_path):
    run = copy(finished, tmp_path)
    resume(run)
    same_results(run, finished)


def test_a_run_starts_from_a_file_of_weights_and_goes_on_without_it(settings, tmp_path, monkeypatch):
    file, run = tmp_path / "start.pth", tmp_path / "run"
    start = CifarResNet(20, num_classes=1000)
    torch.save(start.state_dict(), file)
    monkeypatch.chdir(tmp_path)
    progress = Stopping(1)
    given = {**settings, "weights_file": "start.pth", "lr": 1e-9, "epochs": 1, "weight_decay": 0.0}
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=run, progress=progress)
    assert f"{file} has other shapes for fc of resnet20: new weights there" in progress.notes
    assert read_settings(run / "config.yaml")["weights_file"] == str(file)
    torch.testing.assert_close(weights(run)["layer3.2.conv2.weight"], start.layer3[2].conv2.weight.detach())
    file.unlink()
    resume(run)
    assert RunFolder(run).finished


def test_a_finished_run_says_so(finished):
    progress = Stopping(0)
    assert resume(finished, progress=progress) == json.loads((finished / "summary.json").read_text())
    assert "finished" in progress.notes[0]


def test_without_validation_part_the_last_epoch_is_the_chosen_one(settings, tmp_path):
    summary = train(resolve({**settings, "validation": 0.0}), run=tmp_path / "run")
    assert summary["validation_chosen"]["epoch"] == 2
    assert "no validation part" in summary["validation_chosen"]["chosen_by"]
    assert timeless(tmp_path / "run")[0]["val_top1"] == ""


def test_infinite_loss_stops_and_keeps_the_good_checkpoint(settings, tmp_path):
    with pytest.raises(
        DivergedError, match=r"at epoch 1, step \d of 6. Start again with a lower --lr \(it was 1e\+09\)"
    ):
        train(resolve({**settings, "lr": 1e9}), run=tmp_path / "run")
    assert all(v.isfinite().all() for v in weights(tmp_path / "run").values())


def test_answers_that_are_no_numbers_stop_and_keep_the_good_checkpoint(settings, tmp_path, monkeypatch):
    """The weights are finite, what the network makes of them in evaluation is not."""

    def forward(self, x):
        logits = plain(self, x)
        return logits if self.training else logits * 1e30 * 1e30

    plain = CifarResNet.forward
    monkeypatch.setattr(CifarResNet, "forward", forward)
    with pytest.raises(DivergedError, match=r"the validation loss became (NaN|infinite) at epoch 1, step 6 of 6"):
        train(resolve(settings), run=tmp_path / "run")
    assert not RunFolder(tmp_path / "run").finished
    assert load_checkpoint(RunFolder(tmp_path / "run").last)["epoch"] == 0


def copy(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    return run


def test_a_checkpoint_of_other_settings_is_refused(finished, tmp_path):
    run = copy(finished, tmp_path)
    (run / SUMS).unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("backbone: resnet20", "backbone: resnet32"))
    with pytest.raises(UserError, match="backbone is 'resnet20' there and 'resnet32'"):
        resume(run)


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    run = copy(finished, tmp_path)
    content = load_checkpoint(RunFolder(run).last)
    del content["model"]["conv1.weight"]
    save_checkpoint(RunFolder(run).last, content)
    with pytest.raises(UserError, match=r"other architecture, it has no weight 'conv1.weight'"):
        resume(run)


def test_data_that_changed_is_refused(settings, tmp_path, write_images):
    data = write_images(tmp_path / "animals")
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve({**settings, "data": str(data)}), run=run, progress=Stopping(2))
    write_images(tmp_path / "other", seed=9)
    shutil.copy(tmp_path / "other" / "ant" / "0.png", data / "ant" / "0.png")
    with pytest.raises(UserError, match="its images changed"):
        resume(run)
    (data / "ant" / "0.png").unlink()
    with pytest.raises(UserError, match="it had 60 images and has 59"):
        resume(run)
    shutil.rmtree(data / "cow")
    with pytest.raises(UserError, match=r"gone: \['cow'\]"):
        resume(run)


def test_settings_cannot_be_changed_on_the_way(finished, tmp_path):
    with pytest.raises(UserError, match="keeps its settings"):
        resume(copy(finished, tmp_path), lr=0.1)


def test_two_processes_cannot_train_in_one_folder(finished, tmp_path):
    run = copy(finished, tmp_path)
    held = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", held, str(run / "checkpoints" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            with pytest.raises(UserError, match="another process"):
                resume(run)
        finally:
            other.kill()


class Listening(QuietProgress):
    """Remembers what is said."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Counting(QuietProgress):
    """Remembers what it is told of every step, and the step that the last checkpoint is of."""

    def __init__(self, run):
        self.last, self.began, self.steps, self.saved = RunFolder(run).last, [], [], []

    def start(self, done, total):
        self.began.append((done, total))

    def step(self, where, done, loss, images_per_s):
        self.steps.append((where, done, loss, images_per_s))
        self.saved.append(load_checkpoint(self.last)["step"])


def test_progress_is_told_images_loss_and_speed_of_every_step(settings, tmp_path):
    told = Counting(tmp_path / "run")
    began = time.monotonic()
    train(resolve({**settings, "backbone": "lenet5"}), run=tmp_path / "run", progress=told)
    passed = time.monotonic() - began
    assert told.began == [(0, 96)]
    assert [done for _, done, _, _ in told.steps] == list(range(8, 97, 8))
    assert [where for where, *_ in told.steps] == ["epoch 1/2"] * 6 + ["epoch 2/2"] * 6
    assert all(speed > 0 for *_, speed in told.steps)
    rows = epochs_of(tmp_path / "run")
    assert [told.steps[step][2] for step in (5, 11)] == pytest.approx(
        [float(row["train_loss"]) for row in rows], abs=1e-6
    )  # the file has six decimals
    for row in rows:  # its seconds are those of training and of measuring
        assert float(row["seconds"]) > 48 / float(row["images_per_s"]) > 0
    assert sum(float(row["seconds"]) for row in rows) < passed


def test_the_seconds_of_an_epoch_go_on_where_it_stopped(settings, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve({**settings, "backbone": "lenet5", "epochs": 1}), run=run, progress=Stopping(2))
    content = load_checkpoint(RunFolder(run).last)
    assert content["seconds"] > 0
    save_checkpoint(RunFolder(run).last, content | {"seconds": 100.0})
    told = Counting(run)
    resume(run, progress=told)
    assert told.began == [(16, 48)]
    (row,) = epochs_of(run)
    assert float(row["seconds"]) >= 100
    assert 0 < float(row["images_per_s"]) < 0.48


@pytest.mark.parametrize(
    ("often", "saved"),
    [
        ({"checkpoint_seconds": 3600.0}, [0, 0, 0, 0, 0, 0]),
        ({"checkpoint_seconds": 0.0}, [0, 1, 2, 3, 4, 5]),
        ({"checkpoint_seconds": 3600.0, "checkpoint_steps": 2}, [0, 0, 2, 2, 4, 4]),
    ],
)
def test_checkpoints_are_as_often_as_asked_for(settings, tmp_path, often, saved):
    told = Counting(tmp_path / "run")
    train(resolve({**settings, "backbone": "lenet5", "epochs": 1, **often}), run=tmp_path / "run", progress=told)
    assert told.saved == saved
    content = load_checkpoint(RunFolder(tmp_path / "run").last)
    assert (content["epoch"], content["step"]) == (1, 0)


@pytest.mark.parametrize(
    ("said", "cause"), [("Tried to allocate 2 GiB\nmore", "Tried to allocate 2 GiB"), ("", "OutOfMemoryError")]
)
def test_where_memory_runs_out_a_smaller_batch_is_named(settings, tmp_path, said, cause):
    class Filled(QuietProgress):
        def step(self, where, done, loss, images_per_s):
            raise torch.OutOfMemoryError(said)

    given = resolve({**settings, "backbone": "lenet5"})
    with pytest.raises(UserError, match=rf"with --batch-size 8. Try --batch-size 4, .*\({cause}\)$"):
        train(given, run=tmp_path / "run", progress=Filled())


def test_recomputing_norms_changes_no_bit(settings, tmp_path, monkeypatch):
    given = {**settings, "attention": "csham", "epochs": 1}
    recomputed = []
    compute = _NormOutput._laid_out
    monkeypatch.setattr(_NormOutput, "_laid_out", lambda self: recomputed.append(0) or compute(self))
    train(resolve(given), run=tmp_path / "kept")
    assert not recomputed
    train(resolve({**given, "recompute_norms": True}), run=tmp_path / "recomputed")
    assert recomputed
    kept, found = weights(tmp_path / "kept"), weights(tmp_path / "recomputed")
    assert all(torch.equal(weight, found[name]) for name, weight in kept.items())
    plain = {**given, "backbone": "lenet5", "attention": "none", "recompute_norms": True}
    train(resolve(plain), run=tmp_path / "plain")


def test_an_operation_that_has_no_deterministic_algorithm_is_named(settings, tmp_path):
    class Refusing(QuietProgress):
        def step(self, where, done, loss, images_per_s):
            torch.use_deterministic_algorithms(True)
            try:
                torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
            finally:
                torch.use_deterministic_algorithms(False)

    given = resolve({**settings, "backbone": "lenet5", "deterministic": True})
    with pytest.raises(UserError, match=r"--deterministic: put_ does not have .* Use --no-deterministic"):
        train(given, run=tmp_path / "run", progress=Refusing())


def test_a_process_that_can_no_longer_be_deterministic_is_said_to_be(settings, tmp_path):
    class Refusing(QuietProgress):
        def step(self, where, done, loss, images_per_s):
            raise RuntimeError(
                "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but "
                "this operation is not deterministic because it uses CuBLAS ... set CUBLAS_WORKSPACE_CONFIG=:4096:8"
            )

    given = resolve({**settings, "backbone": "lenet5", "deterministic": True})
    with pytest.raises(UserError, match=r"--deterministic: this process .* with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        train(given, run=tmp_path / "run", progress=Refusing())


def test_a_small_folder_gets_a_batch_that_fits_and_a_word_on_its_steps(settings, tmp_path):
    small = {name: value for name, value in settings.items() if name not in ("batch_size", "epochs")}
    said = Listening()
    train(resolve({**small, "backbone": "lenet5", "recipe": "quick"}), run=tmp_path / "run", progress=said)
    assert "42 training images in 6 batches of 8: 30 steps in 5 epochs" in said.notes
    assert any(note.startswith("warning: 30 steps are few") and "--epochs 50" in note for note in said.notes)
    config = RunFolder(tmp_path / "run").read_config()
    assert (config.batch_size, config.last_batch) == (8, "fill")
    again = tmp_path / "again"
    train(resolve({}, read_settings(tmp_path / "run" / "config.yaml")), run=again)
    same_results(again, tmp_path / "run")


def test_a_run_from_before_batches_were_filled_goes_on_to_the_same_bits(settings, tmp_path):
    """It had 5 steps an epoch of 42 images, and goes on with 5, its last two images left out."""
    before = {**settings, "last_batch": "drop"}
    train(resolve(before), run=tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve(before), run=run, progress=Stopping(3))
    old = {name: value for name, value in read_settings(run / "config.yaml").items() if name != "last_batch"}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    (run / SUMS).unlink()
    content = load_checkpoint(RunFolder(run).last)
    content["config"].pop("last_batch")
    save_checkpoint(RunFolder(run).last, content)
    said = Listening()
    resume(run, progress=said)
    same_results(run, tmp_path / "whole")
    assert load_checkpoint(RunFolder(run).last)["config"]["last_batch"] == "drop"


def test_more_images_to_a_batch_than_there_are(settings, tmp_path):
    with pytest.raises(UserError, match="--batch-size"):
        train(resolve({**settings, "batch_size": 1000}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_compiled_run(settings, tmp_path):
    config = resolve({**settings, "backbone": "lenet5", "epochs": 1, "compile": True})
    summary = train(config, run=tmp_path / "compiled")
    assert summary["machine"]["compile"] is True


@pytest.mark.slow
def test_a_compiler_that_fails_is_done_without(settings, tmp_path, monkeypatch):
    from csham.training import machine

    def broken(model, **kwargs):
        compiled = real(model, backend=fail)
        return compiled

    def fail(graph, inputs):
        raise RuntimeError("g++: internal error")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"--compile failed: .*g\+\+: internal error"):
        train(resolve({**settings, "compile": True}), run=tmp_path / "explicit")
    monkeypatch.setattr(machine, "_IMAGES_WORTH_COMPILING", 1)
    progress = Stopping(0)
    config = resolve({**settings, "epochs": 1})
    summary = train(resolve({**settings, "compile": "auto"}), run=tmp_path / "auto", progress=progress)
    assert config.compile is False
    assert summary["machine"]["compile"] is False
    assert any("g++: internal error" in note for note in progress.notes)
    assert read_settings(tmp_path / "auto" / "config.yaml")["compile"] is False
