"""Power cuts: whatever a crash leaves of a piece of work, the next call ends with the same result.

A few of the states are tried in every run of the tests; in ``make test-long`` all of them, or of thousands some
hundreds, others each time.
"""

import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import power_cuts
import pytest
import safetensors.torch
import torch

import csham
from csham import ops
from csham.data import prepare
from csham.errors import UserError
from csham.share import share
from csham.study.cell import CellRunner
from csham.study.grid import Network
from csham.study.setup import Request, set_up
from csham.study.store import Store
from csham.training.checkpoints import load_checkpoint
from csham.training.config import resolve
from csham.training.loop import resume, train
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds open files through /proc")

MACHINE = {"device": "cpu", "compile": False}
FEW, MANY = 6, 600

# What says how fast or when, and what is of no other use.
TIMES = {"seconds", "images_per_s", "run", "started", "finished", "environment"}


@pytest.fixture(autouse=True)
def _reference():
    with ops.use_kernels("reference"):
        yield


LONG = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(8000)]


@pytest.fixture(params=["few", pytest.param("many", marks=LONG)])
def crash_everywhere(request, tmp_path):
    """Function that tries a few of the states, or many."""
    return lambda *work, **few: crashed_everywhere(tmp_path, *work, **few, many=request.param == "many")


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def same(left, right):
    """Compare bit for bit what holds tensors and arrays."""
    if isinstance(left, torch.Tensor | np.ndarray):
        return left.dtype == right.dtype and np.array_equal(np.asarray(left), np.asarray(right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def leftovers(root):
    """What only a process under way should have: temporary files and folders."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if (path.name.endswith((".tmp", ".new", ".old")) or ".tmp-" in path.name) and path.exists()
    )


def crashed_everywhere(tmp_path, work, recover, few=FEW, many=False):
    """Record a piece of work, and recover from the states that a crash of it may leave."""
    root = tmp_path / "root"
    root.mkdir()
    with power_cuts.recorded(root) as recording:
        work(root, recording)
    expected = recover(root)
    seed = int(time.time()) if many else 1
    chosen, count = power_cuts.states(recording.operations, MANY if many else few, seed)
    print(f"{len(recording.operations)} operations, {count} states, {len(chosen)} tried, seed {seed}")
    wrong = []
    for state in chosen:
        shutil.rmtree(root)  # at one place, since files name others
        root.mkdir()
        state.write(root)
        problem = lost(state, root) or blocked(recover, root, expected)
        if problem:
            wrong.append(f"after {state.after} ({last(recording, state)}), {state.how}: {problem}")
    assert not wrong, f"{len(wrong)} of {len(chosen)} states (of {count}):\n" + "\n".join(wrong[:40])
    return recording


def last(recording, state):
    one = recording.operations[state.after - 1] if state.after else None
    return f"{one.kind} {one.path}" if one else "nothing"


def lost(state, root):
    for promise in state.promises:
        try:
            kept = promise.holds(root)
        except (UserError, OSError, KeyError) as err:
            kept = f"{type(err).__name__}: {err}"
        if kept is not True:
            return f"lost: {promise.path} ({kept})"
    return None


def blocked(recover, root, expected):
    try:
        found = recover(root)
    except Exception as err:
        return f"{type(err).__name__}: {str(err)[:300]}"
    if not same(found, expected):
        return "another result"
    left = leftovers(root)
    return f"left behind: {left}" if left else None


def result_of_run(run):
    content = load_checkpoint(run / "checkpoints/last.ckpt")
    with (run / "metrics.csv").open(newline="") as file:
        rows = [without_times(row) for row in csv.DictReader(file)]
    return [
        content["model"],
        content["optimizer"],
        load_checkpoint(run / "checkpoints/best.ckpt")["model"],
        safetensors.torch.load_file(run / "model.safetensors"),
        without_times(json.loads((run / "summary.json").read_text())),
        (run / "confusion.csv").read_text(),
        (run / "config.yaml").read_text(),
        rows,
    ]


@pytest.mark.slow
def test_a_training(settings, crash_everywhere):
    config = resolve({**settings, "backbone": "lenet5", "image_size": 32, "checkpoint_steps": 4})
    dataset = prepare(settings["data"], image_size=32)

    def work(root, recording):
        class Promising(QuietProgress):
            def epoch(self, row, epochs):
                done = row["epoch"]
                holds = lambda root: load_checkpoint(root / "runs/one/checkpoints/last.ckpt")["epoch"] >= done  # noqa: E731
                recording.promise(holds, f"epoch {done}")

        train(config, run=root / "runs/one", dataset=dataset, progress=Promising())
        recording.promise(lambda root: RunFolder(root / "runs/one").finished, "the summary")

    def recover(root):
        run = root / "runs/one"
        if (run / "config.yaml").exists():
            resume(run, dataset=dataset)
        else:
            train(config, run=run, dataset=dataset)
        return result_of_run(run)

    crash_everywhere(work, recover)


@pytest.mark.slow
def test_epochs_that_are_added_to_a_finished_run(settings, crash_everywhere):
    config = resolve({**settings, "backbone": "lenet5", "image_size": 32, "epochs": 1})
    dataset = prepare(settings["data"], image_size=32)

    def work(root, recording):
        run = root / "runs/one"
        train(config, run=run, dataset=dataset)
        kept = lambda root: load_checkpoint(root / "runs/one/checkpoints/last.ckpt")["epoch"] >= 1  # noqa: E731
        recording.promise(kept, "the epochs so far")
        resume(run, epochs=2, schedule="constant", dataset=dataset)
        recording.promise(lambda root: RunFolder(root / "runs/one").read_summary()["epochs"] == 2, "the summary")

    def recover(root):
        run = root / "runs/one"
        if not (run / "config.yaml").exists():
            train(config, run=run, dataset=dataset)
        resume(run, dataset=dataset)  # finished or not, it can go on
        resume(run, epochs=2, schedule="constant", dataset=dataset)
        return result_of_run(run)

    crash_everywhere(work, recover, few=6)


@pytest.mark.slow
def test_a_study(images, crash_everywhere):
    settings = {"epochs": 1, "batch_size": 8, "lr": 0.05, "image_size": 32, "precision": "fp32"}
    networks = (Network("lenet5"), Network("lenet5", "simam"))

    def open_study(root):
        request = Request(data=str(images), folder=root / "study", networks=networks, seeds=(0,), settings=settings)
        return set_up(request, lambda text: None, lambda *_: None).store

    def go_on(root, told=lambda record: None):
        store = open_study(root)
        runner = CellRunner(store, MACHINE)
        store.repair()
        done = {key for key, record in store.by_key().items() if record["status"] == "done"}
        for cell in store.study.cells():
            if cell.key not in done:
                told(runner.run(cell.key))
        return store

    def work(root, recording):
        def told(record):
            kept = lambda root: same(Store(root / "study").by_key()[record["key"]], json.loads(json.dumps(record)))  # noqa: E731
            recording.promise(kept, record["label"])

        open_study(root)
        recording.promise(lambda root: bool(Store(root / "study").study.cells()), "the plan")
        go_on(root, told)

    def recover(root):
        store = go_on(root)
        records = without_times(store.by_key())
        return [records, *(result_of_run(store.run_folder(cell.name)) for cell in store.study.cells())]

    crash_everywhere(work, recover, few=4)


def test_a_plan_is_on_the_disk_with_the_folders_above_it(tmp_path, images):
    root = tmp_path / "root"
    root.mkdir()
    request = Request(data=str(images), folder=root / "of/mine/study", networks=(Network("lenet5"),), seeds=(0,))
    with power_cuts.recorded(root) as recording:
        set_up(request, lambda text: None, lambda *_: None)
        recording.promise(lambda root: bool(Store(root / "of/mine/study").study.cells()), "the plan")
    chosen, _ = power_cuts.states(recording.operations)
    for state in [state for state in chosen if state.promises]:
        shutil.rmtree(root)
        root.mkdir()
        state.write(root)
        assert lost(state, root) is None, state.how


def test_packed_images(images, crash_everywhere):
    def work(root, recording):
        prepare(str(images), image_size=32, cache_dir=root)  # no promise: what is lost of a cache is made again

    def recover(root):
        found = prepare(str(images), image_size=32, cache_dir=root)
        return [np.array(found.images), found.labels, found.parts, found.sums, list(found.classes)]

    crash_everywhere(work, recover, few=40)


@pytest.mark.slow
def test_a_shared_folder(finished, crash_everywhere):
    def work(root, recording):
        share(finished, root / "shared")
        recording.promise(lambda root: (root / "shared").is_dir(), "the shared folder")

    def recover(root):
        folder = root / "shared"
        if not folder.exists() or not any(folder.iterdir()):
            share(finished, folder)
        found = csham.load(folder)
        return [found.network.state_dict(), found.info.to_dict(), (folder / "README.md").read_text()]

    crash_everywhere(work, recover, few=40)


@pytest.mark.slow
def test_an_exported_file(finished, crash_everywhere):
    trained = csham.load(finished)
    pixels = np.zeros((2, trained.info.image_size, trained.info.image_size, 3), np.uint8)

    def work(root, recording):
        csham.export(trained, root / "network.safetensors", images=pixels)
        recording.promise(lambda root: (root / "network.safetensors").is_file(), "the exported file")

    def recover(root):
        path = root / "network.safetensors"
        if path.exists():
            csham.load(path)
        csham.export(trained, path, images=pixels, force=True)
        return [csham.load(path).network.state_dict()]

    crash_everywhere(work, recover, few=40)


# That the recording sees what there is to see.


def found_in(tmp_path, work):
    root = tmp_path / "root"
    root.mkdir()
    with power_cuts.recorded(root):
        pass
    with power_cuts.recorded(root) as recording:
        work(root)
    everything, count = power_cuts.states(recording.operations)
    assert count == len(everything)
    return [one.tree for one in everything]


def write(path, content, *, sync):
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def replace(root, *, sync):
    write(root / "a", b"old!", sync=True)
    sync_folder(root)
    write(root / "b", b"new!", sync=sync)
    (root / "b").replace(root / "a")


def test_renaming_before_the_content_is_synced_may_lose_both(tmp_path):
    seen = found_in(tmp_path, lambda root: replace(root, sync=False))
    assert {tree.get("a") for tree in seen} >= {b"old!", b"new!", b"", b"ne", bytes(4), b"\0\0w!"}


def test_renaming_what_is_synced_leaves_one_or_the_other(tmp_path):
    seen = found_in(tmp_path, lambda root: replace(root, sync=True))
    after = [tree for tree in seen if tree.get("a") in (b"old!", b"new!")]
    assert {tree["a"] for tree in after} == {b"old!", b"new!"}
    assert all(tree.get("a") in (None, b"", b"ol", b"\0\0d!", bytes(4), b"old!", b"new!") for tree in seen)


def test_an_entry_lasts_once_its_folder_is_synced(tmp_path):
    def work(root):
        replace(root, sync=True)
        sync_folder(root)
        write(root / "c", b"!", sync=True)

    root = tmp_path / "root"
    root.mkdir()
    with power_cuts.recorded(root) as recording:
        work(root)
    last_sync = max(n for n, one in enumerate(recording.operations) if one.kind == "sync folder")
    after = [one.tree for one in power_cuts.states(recording.operations)[0] if one.after > last_sync]
    assert after
    assert all(tree["a"] == b"new!" for tree in after)
    assert {tree.get("c") for tree in after} >= {b"", b"!"}


def test_folders_come_and_go_with_what_is_in_them(tmp_path):
    def work(root):
        (root / "new").mkdir()
        write(root / "new/file", b"x", sync=True)
        (root / "new").rename(root / "there")
        shutil.rmtree(root / "there")

    trees = found_in(tmp_path, work)
    assert {"there": None, "there/file": b"x"} in trees
    assert {"new": None, "new/file": b"x"} in trees
    assert {"there": None} in trees  # renamed, without what was in it
    assert {} in trees


def test_a_promise_that_is_broken_is_told(tmp_path):
    def work(root, recording):
        write(root / "a", b"all", sync=False)
        recording.promise(lambda root: (root / "a").read_bytes() == b"all", "the file")

    with pytest.raises(AssertionError, match="lost: the file"):
        crashed_everywhere(tmp_path, work, lambda root: 0)


def test_what_cannot_go_on_and_what_is_left_are_told(tmp_path):
    def refuse(root):
        if (root / "a").exists() and (root / "a").read_bytes() != b"all":
            raise UserError("damaged")
        return 0

    with pytest.raises(AssertionError, match="UserError: damaged"):
        crashed_everywhere(tmp_path, lambda root, _: write(root / "a", b"all", sync=False), refuse)
    shutil.rmtree(tmp_path / "root")
    with pytest.raises(AssertionError, match=r"left behind: \['x.tmp'\]"):
        crashed_everywhere(tmp_path, lambda root, _: write(root / "x.tmp", b"all", sync=True), lambda root: 0)


def test_operations_of_other_folders_and_threads_end_nothing(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    trees = found_in(tmp_path, lambda root: Path(tmp_path / "elsewhere/file").write_text("x"))
    assert trees == [{}]
