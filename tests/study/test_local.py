import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csham.errors import UserError
from csham.study.engines import plan_tasks
from csham.study.engines.local import _seen_by_torch, run_local
from csham.study.grid import Data, Network
from csham.study.progress import StudyProgress
from csham.study.store import Store
from csham.training.interrupt import STOP_SIGNALS, TIME_IS_OVER, TimeLimit


class Told(StudyProgress):
    def __init__(self):
        self.notes, self.records, self.jobs = [], [], set()
        self.on_cell = lambda: None

    def note(self, text):
        self.notes.append(text)

    def ended(self, job, record):
        self.records.append((job, record))

    def cell(self, job, label, where, fraction, images_per_s):
        self.jobs.add(job)
        if fraction:
            self.on_cell()


@pytest.fixture
def stand_in(make_study, tmp_path, monkeypatch):
    """Function that runs cells of one network and several seeds in workers that need no PyTorch."""
    monkeypatch.setattr("csham.study.engines.local._WORKER", "worker_without_torch")
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    store = Store(tmp_path / "study")
    with store.changing_study():
        store.write_study(make_study([Network("lenet5")], range(3)))

    def run(told=None, *, retry_failed=False, deeds=None, **options):
        monkeypatch.setenv("DEEDS", json.dumps(deeds or {}))
        tasks = plan_tasks(store.study, store.by_key(), retry_failed=retry_failed)
        return run_local(store, tasks, {"device": "cpu"}, told or Told(), **options)

    run.store = store
    run.diary = lambda: [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    return run


def states(store):
    found = {record["seed"]: (record["status"], record["attempts"]) for record in store.records()}
    return [found.get(seed) for seed in range(3)]


def test_one_worker_does_all_cells_in_their_order(stand_in):
    told = Told()
    assert stand_in(told).signum is None
    assert states(stand_in.store) == [("done", 1)] * 3
    assert [record["seed"] for _, record in told.records] == [0, 1, 2]
    assert len({pid for _, pid, _ in stand_in.diary()}) == 1
    assert not stand_in.store.is_claimed(stand_in.store.study.cells()[0].key)


def test_jobs_share_the_cells_and_the_cores(stand_in, monkeypatch):
    monkeypatch.setattr("csham.study.engines.local.available_cores", lambda: 9)
    stand_in(jobs=2)
    assert states(stand_in.store) == [("done", 1)] * 3
    assert {threads for _, _, threads in stand_in.diary()} == {"4"}


def test_together_one_process_has_the_cells_and_all_cores(stand_in, monkeypatch):
    monkeypatch.setattr("csham.study.engines.local.available_cores", lambda: 9)
    told = Told()
    stand_in(told, jobs=3, together=True, deeds={"0": ["step"], "1": ["step"], "2": ["step"]})
    assert states(stand_in.store) == [("done", 1)] * 3
    assert {threads for _, _, threads in stand_in.diary()} == {"9"}
    assert len({pid for _, pid, _ in stand_in.diary()}) == 1
    assert told.jobs == {0, 1, 2}


def test_a_process_gets_as_many_cells_as_it_has_room_for(stand_in):
    told = Told()
    stand_in(told, together=True, deeds={"0": ["room 2"]})
    assert states(stand_in.store) == [("done", 1)] * 3
    assert told.jobs == {0, 1}


@pytest.mark.slow
def test_of_cells_whose_process_died_the_one_to_blame_fails_alone(stand_in):
    told = Told()
    stand_in(told, jobs=3, together=True, deeds={"1": ["die", "die", "die"]})
    assert states(stand_in.store) == [("done", 1), ("failed", 1), ("done", 1)]
    assert (
        "killed (signal 9; out of memory?), 2 times"
        in stand_in.store.by_key()[cell_key(stand_in, 1)]["error"]["message"]
    )
    assert len({pid for seed, pid, _ in stand_in.diary() if seed == "1"}) == 3


def test_files_of_the_working_folder_are_not_imported(stand_in, tmp_path, monkeypatch):
    """Nor the torch there, by the process that counts GPUs."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "torch.py").write_text("class cuda: is_available, device_count = [lambda: 1] * 2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "code"), os.environ["PYTHONPATH"]]))
    monkeypatch.chdir(tmp_path)
    for name in ("types", "random", "queue", "csham", "torch"):
        Path(f"{name}.py").write_text("open('ran', 'w').close()")
    stand_in()
    assert states(stand_in.store) == [("done", 1)] * 3
    assert _seen_by_torch() == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize("deed", ["die", "fail and leave"])
def test_pipes_of_workers_are_closed(stand_in, deed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()  # what earlier tests left
        caught.clear()
        stand_in(jobs=2, deeds={"0": [deed]})
        gc.collect()
    said = [str(warning.message) for warning in caught]
    assert [words for words in said if re.search(r"subprocess|name=\d", words)] == []


def test_the_working_folder_is_searched_if_the_user_says_so(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.chdir(tmp_path)
    Path("random.py").write_text("open('ran', 'w').close()\nfrom _random import Random")
    with contextlib.suppress(UserError):  # it may miss what else is in random
        stand_in()
    assert Path("ran").exists()


def cell_key(stand_in, seed):
    return next(cell.key for cell in stand_in.store.study.cells() if cell.seed == seed)


def test_how_many_processes_and_cells_in_each():
    from csham.study.engines.local import _rooms

    assert _rooms({}, [], None, None) == [1]
    assert _rooms({}, [], 3, None) == [1, 1, 1]
    assert _rooms({}, [], 3, True) == [3]
    assert _rooms({}, [], None, True) == [None]
    assert _rooms({}, ["0", "1"], None, None) == [None, None]
    assert _rooms({}, ["0", "1"], 5, None) == [3, 2]
    assert _rooms({}, ["0", "1"], 1, None) == [1]
    assert _rooms({}, ["0", "1"], 3, False) == [1, 1, 1]
    assert _rooms({"device": "cuda:1"}, [], None, None) == [None]
    assert _rooms({"device": "cpu"}, [], None, None) == [1]
    tracked = {"trackers": ("tensorboard", "wandb")}
    assert _rooms(tracked, ["0"], 2, None) == [1, 1]
    with pytest.raises(UserError, match="--together: wandb tracks one run a process"):
        _rooms(tracked, ["0"], 2, True)


def test_threads_that_the_user_set_stay(stand_in, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stand_in()
    assert {threads for _, _, threads in stand_in.diary()} == {"7"}


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_cell_has_a_second_chance(stand_in):
    told = Told()
    stand_in(told, deeds={"0": ["die"], "1": ["die", "die"]})
    assert states(stand_in.store) == [("done", 1), ("failed", 1), ("done", 1)]
    error = next(record for record in stand_in.store.records() if record["seed"] == 1)["error"]
    assert "killed (signal 9; out of memory?), 2 times" in error["message"]
    assert sum("going on from its last checkpoint" in note for note in told.notes) == 2
    assert len({pid for _, pid, _ in stand_in.diary()}) == 4


@pytest.mark.slow
def test_failed_cells_wait_for_retry_failed(stand_in):
    stand_in(deeds={"1": ["fail and leave", "fail"]})
    assert states(stand_in.store) == [("done", 1), ("failed", 1), ("done", 1)]
    stand_in()
    assert len(stand_in.diary()) == 3
    stand_in(retry_failed=True, deeds={"1": ["fail", "fail"]})
    assert states(stand_in.store)[1] == ("failed", 2)
    stand_in(retry_failed=True)
    assert states(stand_in.store)[1] == ("done", 3)
    assert len(stand_in.diary()) == 5


def test_what_no_cell_can_do_anything_about_ends_the_call(stand_in):
    with pytest.raises(UserError, match="the disk is full"):
        stand_in(deeds={"0": ["fatal"]})
    assert stand_in.store.records() == []


def test_a_worker_that_cannot_start_is_told_with_its_words(stand_in):
    with pytest.raises(UserError, match=r"could not start \(exit code 3\)(.|\n)*no such device"):
        stand_in(deeds={"0": "no start"})


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_stops_workers_and_records_nothing(stand_in, signum):
    told = Told()
    told.on_cell = lambda: os.kill(os.getpid(), signum)
    assert stand_in(told, deeds={"0": ["sleep"]}).signum == signum
    assert stand_in.store.records() == []
    assert stand_in.diary()[-1] == ["stopped"]
    assert "once more stops at once" in told.notes[0]
    assert not stand_in.store.is_claimed(stand_in.store.study.cells()[0].key)


def limited(told, minutes=10.0):
    """A limit whose clock ``told`` moves, 10 minutes from now."""
    told.now = 0.0
    return TimeLimit(minutes, started=0.0, clock=lambda: told.now)


def test_workers_stop_when_the_time_is_over(stand_in):
    told = Told()
    limit = limited(told)
    told.on_cell = lambda: setattr(told, "now", 600.0)
    assert stand_in(told, deeds={"0": ["sleep"]}, limit=limit).signum == TIME_IS_OVER
    assert stand_in.store.records() == []
    assert stand_in.diary()[-1] == ["stopped"]
    assert states(stand_in.store) == [None] * 3
    assert stand_in(limit=limited(Told())).signum is None
    assert states(stand_in.store) == [("done", 1)] * 3


def test_so_much_time_is_kept_as_workers_need_to_save(stand_in):
    told = Told()
    limit = limited(told)
    told.on_cell = lambda: setattr(told, "now", 400.0)  # of 600
    assert stand_in(told, deeds={"0": ["need 300"]}, limit=limit).signum == TIME_IS_OVER
    assert limit.reserve == 300


def test_no_cell_begins_in_less_time_than_one_takes_to_begin(stand_in, monkeypatch):
    class Slow(Told):
        def ended(self, job, record):
            super().ended(job, record)
            self.now += 590.0  # less is left than a worker takes to its first step

    told = Slow()
    monkeypatch.setattr("csham.study.engines.local._Engine._note_begin", lambda engine, worker: begin(engine))

    def begin(engine):
        engine._seconds_to_begin = 20.0

    outcome = stand_in(told, deeds={"0": ["step"]}, limit=limited(told))
    assert outcome.signum == TIME_IS_OVER
    assert states(stand_in.store) == [("done", 1), None, None]


def test_cells_under_way_elsewhere_are_waited_for(stand_in):
    store, told = stand_in.store, Told()
    key = store.study.cells()[0].key
    elsewhere = store.claim(key)

    def finish():
        while not told.notes:
            time.sleep(0.05)
        done = store.records()[0]
        store.append(done | {"key": key, "seed": 0})
        elsewhere.release()

    other = threading.Thread(target=finish)
    other.start()
    stand_in(told)
    other.join()
    assert states(store) == [("done", 1)] * 3
    assert [row[0] for row in stand_in.diary()] == ["1", "2"]
    assert (None, 0) in [(job, record["seed"]) for job, record in told.records]
    assert "waiting for 1 cell of this study under way in other processes" in told.notes


def test_a_shard_leaves_cells_under_way_elsewhere_to_others(stand_in):
    told = Told()
    with stand_in.store.claim(stand_in.store.study.cells()[0].key):
        stand_in(told, wait=False)
    assert states(stand_in.store) == [None, ("done", 1), ("done", 1)]
    assert any("left to other processes" in note for note in told.notes)


def test_shards_share_out_every_cell(make_study):
    study = make_study(None, range(5))
    parts = [plan_tasks(study, {}, shard=(part, 3)) for part in (1, 2, 3)]
    assert [task.cell for task in parts[1]] == study.cells()[1::3]
    assert {task.cell.key for part in parts for task in part} == {cell.key for cell in study.cells()}
    assert sum(map(len, parts)) == 10


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Function that returns the GPUs of a machine whose driver lists two, of which torch sees as many as it is told."""
    from csham.study.engines import local

    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: NVIDIA A (UUID: y)'\n"
    )
    driver.chmod(0o755)
    (tmp_path / "torch.py").write_text(
        "import os\n"
        "class cuda:\n"
        "    is_available = staticmethod(lambda: bool(int(os.environ['SEEN'])))\n"
        "    device_count = staticmethod(lambda: int(os.environ['SEEN']))\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def seen(visible, number, device="auto"):
        monkeypatch.setenv("SEEN", str(number))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return local._gpus({"device": device})

    return seen


@pytest.mark.parametrize(
    ("visible", "seen", "expected"),
    [
        ("2,GPU-abc", 2, ["2", "GPU-abc"]),
        ("0,-1,1", 9, ["0"]),  # CUDA stops at the first that is none
        ("0,,1", 9, ["0"]),
        ("-1", 9, []),
        ("", 9, []),
        ("0,7", 1, ["0"]),
        ("0", 0, []),
        (None, 2, ["0", "1"]),
        (None, 0, []),
    ],
)
def test_gpus_that_torch_sees_are_given_out_one_to_a_job(gpus, visible, seen, expected):
    assert gpus(visible, seen) == expected


def test_gpus_are_not_given_out_where_a_device_was_named(gpus):
    assert gpus("0,1", 2, device="cuda") == ["0", "1"]
    assert gpus("0,1", 2, device="cpu") == gpus("0,1", 2, device="cuda:1") == []


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers through /proc")
def test_two_compares_share_a_study_whatever_is_killed(make_study, images, tmp_path):
    """Real processes: a worker is killed, then a whole compare; the records are those of an undisturbed study."""
    from csham.data import prepare
    from csham.data.dataset import describe_data
    from csham.study.cell import CellRunner

    found = describe_data(prepare(str(images), image_size=32))
    study = make_study(
        [Network("lenet5"), Network("lenet5", "simam")], [0, 1], data=str(images), epochs=6, batch_size=8
    )
    study = replace(study, data=Data(str(images), 3, found["images"], 32, found["fingerprint"]))
    shared, whole = Store(tmp_path / "shared"), Store(tmp_path / "whole")
    for store in (shared, whole):
        with store.changing_study():
            store.write_study(study)

    words = ["compare", "--study", str(shared.path), "--no-compile", "--device", "cpu", "--checkpoint-steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "csham", *words]
    with subprocess.Popen([*command, "--quiet"], env=environment, stdout=subprocess.DEVNULL) as first:
        second = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        worker = wait_for(lambda: under_way(shared, first.pid), first)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: (pid := under_way(shared, first.pid)) and pid != worker, first)
        first.kill()
    said, complaints = second.communicate(timeout=500)
    assert second.returncode == 0, complaints
    assert "2/2" in said

    lines = [json.loads(line) for line in shared.records_file.read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == sorted(cell.key for cell in study.cells())  # each exactly once
    runner = CellRunner(whole, {"device": "cpu", "compile": False})
    for cell in study.cells():
        assert same(shared.by_key()[cell.key], runner.run(cell.key))
        ours, theirs = (torch.load(s.run_folder(cell.name) / "checkpoints/last.ckpt") for s in (shared, whole))
        assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items()), cell.label


def under_way(store, engine):
    """The worker of an engine that has trained a step or more of a cell, or None."""
    children = Path(f"/proc/{engine}/task/{engine}/children")
    for pid in map(int, children.read_text().split()):
        open_files = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        for run in store.path.glob("runs/*"):
            if str(run / "checkpoints/.lock") in open_files and (run / "metrics.csv").exists():
                return pid
    return None


def wait_for(condition, process):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, "it ended too early"
        try:
            if found := condition():
                return found
        except OSError:  # a process that has just ended
            pass
        time.sleep(0.02)
    raise AssertionError("it never came to that")


def same(ours, theirs):
    keep = ("key", "status", "label", "seed", "per_class", "attempts", "classes")
    accuracies = ("loss", "top1", "kappa", "validation_chosen")
    return all(ours[name] == theirs[name] for name in keep) and all(
        ours["result"][name] == theirs["result"][name] for name in accuracies
    )
