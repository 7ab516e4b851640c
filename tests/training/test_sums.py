"""A run's files are believed as they were written: whatever changed is refused by name, and the advice holds."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from csham.errors import UserError
from csham.files import SUMS, read_sums, sum_files
from csham.inference import load
from csham.training.checkpoints import load_checkpoint, save_checkpoint
from csham.training.config import BEFORE, resolve
from csham.training.evaluation import evaluate, load_network
from csham.training.loop import resume, train
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.sums import check_unchanged, write_listed

READERS = {
    "config.yaml": lambda folder: folder.read_config(),
    "environment.json": lambda folder: folder.read_json("environment.json"),
    "metrics.csv": lambda folder: folder.read_metrics(),
    "confusion.csv": lambda folder: folder.read_confusion(),
    "summary.json": lambda folder: folder.read_summary(),
    "model.safetensors": lambda folder: load_network(folder, "last"),
    "checkpoints/last.ckpt": lambda folder: load_checkpoint(folder.last),
    "checkpoints/best.ckpt": lambda folder: load_checkpoint(folder.best),
}


@pytest.fixture
def run(finished, tmp_path):
    return RunFolder(shutil.copytree(finished, tmp_path / "run"))


class Listening(QuietProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def bits(run):
    return {name: value.clone() for name, value in load_network(run, "last")[0].state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def flip(path, place=-2000):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def test_every_file_that_is_read_back_is_listed_once_at_the_end(finished):
    assert {name: len(sums) for name, sums in read_sums(finished).items()} == dict.fromkeys(READERS, 1)
    for read in READERS.values():
        read(RunFolder(finished))


@pytest.mark.parametrize("name", READERS)
def test_whatever_changes_in_a_file_is_refused_by_its_name(run, name):
    path, draw = run.path / name, random.Random(name)
    content = path.read_bytes()
    for _ in range(60):
        place, length = draw.randrange(len(content)), draw.choice([1, 1, 1, 512])
        kind = draw.choice(["bit", "zero", "cut"])
        changed = bytearray(content)
        if kind == "bit":
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == "zero":
            changed[place : place + length] = bytes(len(changed[place : place + length]))
        else:
            del changed[place:]
        if changed == content:
            continue
        path.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            READERS[name](run)
        assert f"{path} was changed since it was written" in str(caught.value)


def test_a_list_that_was_changed_is_refused_and_a_file_that_is_not_in_it(run):
    text = (run.path / SUMS).read_bytes()
    (run.path / SUMS).write_bytes(text.replace(b"config.yaml", b"confug.yaml"))
    with pytest.raises(UserError, match=r"csham\.sha256, which has the sums.*Without it, .* is read unchecked"):
        run.read_config()
    (run.path / SUMS).write_bytes(text)
    (run.path / "checkpoints" / "other.ckpt").write_bytes(run.last.read_bytes())
    with pytest.raises(UserError, match=r"other\.ckpt was not written with the rest"):
        load_checkpoint(run.path / "checkpoints" / "other.ckpt")


def test_a_folder_from_before_there_were_sums_is_read_and_said_to_be_unchecked_once(
    finished, copy_unlisted, tmp_path, caplog
):
    old = copy_unlisted(finished, tmp_path / "old")
    assert evaluate(old).summary["top1"] == evaluate(finished).summary["top1"]
    resume(old)
    notes = [record.message for record in caplog.records if "csham.sha256" in record.message]
    assert notes == [
        f"{old} has no csham.sha256, as of an earlier version: whether its files were changed cannot be told"
    ]
    assert not (old / SUMS).exists()


def test_a_run_may_be_called_like_the_folder_of_its_checkpoints(finished, tmp_path, caplog):
    run = RunFolder(shutil.copytree(finished, tmp_path / "checkpoints"))
    for read in READERS.values():
        read(run)
    assert caplog.records == []
    flip(run.last)
    with pytest.raises(UserError, match=r"last\.ckpt was changed"):
        load_checkpoint(run.last)


def test_a_config_that_lacks_a_setting_is_refused_where_it_is_a_runs_own(run, copy_unlisted, tmp_path):
    lines = run.config_file.read_text().splitlines(keepends=True)
    old = RunFolder(copy_unlisted(run.path, tmp_path / "old"))
    for number, line in enumerate(lines[1:], start=1):
        if line.startswith("- "):  # of a setting with several values
            continue
        cut = "".join(lines[:number])
        old.config_file.write_text(cut)
        old.read_config()
        run.write_text("config.yaml", cut)
        if line.partition(":")[0] not in BEFORE:  # there were runs without
            with pytest.raises(UserError, match=f"config.yaml lacks .*{line.partition(':')[0]}"):
                run.read_config()


def test_what_a_process_killed_at_the_end_of_a_run_did_not_come_to_is_done_by_the_next(run):
    path = run.path / SUMS
    program = (
        f"import os, pathlib, csham.files as f; f.write_atomically(pathlib.Path({str(path)!r}), lambda _: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert list(run.path.glob(".csham*"))
    name, old = "checkpoints/last.ckpt", "0" * 64
    lines = [f"{digest}  {file}" for file, digests in read_sums(run.path).items() for digest in digests]
    body = "".join(f"{line}\n" for line in sorted([*lines, f"{old}  {name}"])).encode()
    path.write_bytes(body + f"# {hashlib.sha256(body).hexdigest()}\n".encode())
    assert len(read_sums(run.path)[name]) == 2
    resume(run.path)
    assert len(read_sums(run.path)[name]) == 1
    assert not list(run.path.glob(".csham*"))


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv", "confusion.csv"])
def test_numbers_that_were_changed_are_measured_and_written_anew(run, finished, name):
    flip(run.path / name)
    with pytest.raises(
        UserError, match=f"csham train --resume {run.path} writes it anew once .*summary.json is removed"
    ):
        resume(run.path) if name == "summary.json" else READERS[name](run)
    run.summary_file.unlink()
    resume(run.path)
    assert READERS[name](run) == READERS[name](RunFolder(finished)) or name == "summary.json"
    assert run.read_summary()["top1"] == RunFolder(finished).read_summary()["top1"]
    assert {len(sums) for sums in read_sums(run.path).values()} == {1}


def test_weights_that_were_changed_are_read_from_their_checkpoint(run, finished):
    flip(run.weights)
    for read in (lambda: evaluate(run.path), lambda: load(run.path), lambda: load(run.weights)):
        with pytest.raises(UserError, match=r"model\.safetensors was changed since it was written"):
            read()
    with pytest.raises(UserError, match=r"Without it, they are read from checkpoints/last\.ckpt"):
        evaluate(run.path)
    run.weights.unlink()
    assert same(bits(run), bits(RunFolder(finished)))


def test_a_run_goes_on_from_the_chosen_checkpoint_where_the_last_was_changed(settings, tmp_path):
    run = RunFolder(tmp_path / "run")
    given = {**settings, "epochs": 3, "validation": 0.0}  # the last epoch is the chosen one
    train(resolve(given), run=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", run.path)
    run.summary_file.unlink()
    content = load_checkpoint(run.last)
    for damage in (flip, lambda path: path.unlink()):
        damage(run.last)
        said = Listening()
        resume(run.path, progress=said)
        assert any(note.endswith(f"Going on from {run.best}, which is whole") for note in said.notes), said.notes
        assert same(bits(run), bits(RunFolder(tmp_path / "whole")))
        run.summary_file.unlink()
    assert content["epoch"] == 3
    flip(run.best)
    run.last.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"there is no checkpoint .*last\.ckpt"):
        resume(run.path)


def test_without_the_chosen_weights_the_last_ones_can_be_had(run):
    content = load_checkpoint(run.last)
    content["best"]["epoch"] = 1
    save_checkpoint(run.last, content)
    run.summary_file.unlink()
    flip(run.best)
    with pytest.raises(UserError, match=f"best.ckpt was changed.*csham evaluate {run.path} --weights last") as caught:
        resume(run.path)
    assert "copy" not in str(caught.value).replace("have no other copy", "")
    assert evaluate(run.path, weights="last").summary["epoch"] == 2


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda summary: summary | {"top1": 95.0}, "confusion.csv"),
        (lambda summary: summary | {"macro_top1": 12.5}, "confusion.csv"),
        (lambda summary: summary | {"images": 13}, "confusion.csv"),
        (lambda summary: summary | {"epochs": 3}, "metrics.csv"),
        (lambda s: s | {"validation_chosen": s["validation_chosen"] | {"validation_top1": 99.5}}, "metrics.csv"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_without_a_list_too(
    finished, copy_unlisted, tmp_path, change, file
):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    summary = run.read_summary()
    run.summary_file.write_text(json.dumps(change(summary)))
    with pytest.raises(UserError, match=rf"summary\.json and .*{file} contradict each other"):
        run.read_summary()


@pytest.mark.parametrize("text", ["", "[]", '{"top1": NaN}', "[" * 100_000, "\xff", '{"top1": "two"}', "{}"])
def test_a_summary_that_is_none_is_refused_by_its_name(finished, copy_unlisted, tmp_path, text):
    run = RunFolder(copy_unlisted(finished, tmp_path / "run"))
    run.summary_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        resume(run.path)


def test_weights_that_are_no_numbers_are_not_measured(run, finished):
    content = load_checkpoint(run.last)
    content["model"]["fc.bias"][0] = float("nan")
    save_checkpoint(run.last, content)
    run.weights.unlink()
    with pytest.raises(UserError, match=r"'fc\.bias' holds numbers that are not finite"):
        evaluate(run.path)


def test_a_file_that_is_being_replaced_is_never_taken_for_a_changed_one(tmp_path):
    path = tmp_path / "file"
    write_listed({path: lambda file: file.write(b"0")})
    sum_files(tmp_path, ["file"])
    ended = threading.Event()

    def write():
        for number in range(150):
            write_listed({path: lambda file, number=number: file.write(bytes(10_000) + str(number).encode())})
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not ended.is_set():
        assert check_unchanged(path, "")
        looks += 1
    writer.join()
    assert looks > 20
