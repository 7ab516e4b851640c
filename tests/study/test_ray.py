"""Cells on a Ray cluster of two nodes on this machine, one of whose processes is killed."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from csham.errors import UserError
from csham.study.engines import plan_tasks
from csham.study.engines.ray import _Board, _Engine, _init_settings, _pack, _run_cell, _unpack, run_ray
from csham.study.grid import Network
from csham.study.progress import StudyProgress
from csham.study.store import Store
from csham.training.checkpoints import load_checkpoint
from csham.training.interrupt import TIME_IS_OVER, TimeLimit

pytestmark = [pytest.mark.slow, pytest.mark.long]


class Told(StudyProgress):
    def __init__(self, on_cell=lambda: None):
        self.notes, self.records, self.on_cell = [], [], on_cell

    def note(self, text):
        self.notes.append(text)

    def ended(self, job, record):
        self.records.append(record)

    def cell(self, job, label, where, fraction, images_per_s):
        if 0 < fraction < 0.5:
            self.on_cell()


@pytest.fixture(scope="module")
def address():
    """A cluster of two nodes with a core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("CSHAM_KERNELS", "reference")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def store(make_study, tmp_path):
    """A study of three cells, of the real digits."""
    from dataclasses import replace

    from csham.data import prepare
    from csham.data.dataset import describe_data

    study = make_study([Network("lenet5")], range(3), epochs=12, recipe="quick", batch_size=32)
    fingerprint = describe_data(prepare("digits"))["fingerprint"]
    store = Store(tmp_path / "study")
    with store.changing_study():
        store.write_study(replace(study, data=replace(study.data, fingerprint=fingerprint)))
    return store


MACHINE = {"device": "cpu", "compile": False, "checkpoint_steps": 5}


def cell_processes():
    """Processes of this test's cluster that run a cell."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not folder.name.isdigit() or b"ray::_run_cell" not in (folder / "cmdline").read_bytes():
                continue
            if f"CSHAM_CACHE={os.environ['CSHAM_CACHE']}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def test_what_no_node_has_is_refused(address, store):
    with pytest.raises(UserError, match="no node of the Ray cluster has 64 cores"):
        run_ray(store, plan_tasks(store.study, {}), MACHINE, Told(), address=address, num_cpus=64)


@pytest.fixture(scope="module")
def connected(address):
    """The cluster, with processes that serve more than one call."""
    import ray

    ray.init(**_init_settings(address))
    yield
    ray.shutdown()


def once(deed):
    """Return a function that does something the first time it is called."""
    done = []
    return lambda: done or (done.append(deed()))


def under_way(store):
    """What tells one beginning of each unfinished run from another, of those that have come past their first step."""
    found = {}
    for folder in (store.path / "runs").glob("*"):
        with contextlib.suppress(OSError, UserError):
            content = load_checkpoint(folder / "checkpoints/last.ckpt")
            if (content["epoch"] or content["step"]) and not (folder / "summary.json").exists():
                found[folder.name] = (folder / "environment.json").read_text()
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes to kill in /proc")
def test_a_study_that_is_stopped_and_whose_processes_are_killed(connected, store, capfd):
    def run(told):
        return run_ray(store, plan_tasks(store.study, store.by_key()), MACHINE, told, address="ignored: connected")

    stopped = run(Told(once(lambda: signal.raise_signal(signal.SIGINT))))
    assert stopped.signum == signal.SIGINT
    after_stop, at_kill = under_way(store), {}
    assert after_stop
    assert not list((store.path / "locks").glob("mark-*"))

    def kill():
        at_kill.update(under_way(store))
        for process in cell_processes():
            os.kill(process, signal.SIGKILL)

    told = Told(once(kill))
    outcome = run(told)
    assert outcome.signum is None
    assert at_kill
    assert len(store.records_file.read_text().splitlines()) == len(store.records()) == len(told.records) == 3
    assert sorted(record["seed"] for record in store.records()) == [0, 1, 2]
    errors = [record["error"] for record in store.records() if record["status"] == "failed"]
    assert not errors, errors
    assert {record["attempts"] for record in store.records()} == {1}
    for name, beginning in {**after_stop, **at_kill}.items():  # gone on with, not begun again
        assert (store.path / "runs" / name / "environment.json").read_text() == beginning
    assert plan_tasks(store.study, store.by_key()) == []
    assert capfd.readouterr().out == ""


def test_a_study_whose_time_is_over_has_saved(connected, store):
    told = Told()
    told.now = 0.0
    limit = TimeLimit(60, started=0.0, clock=lambda: told.now)
    told.on_cell = lambda: setattr(told, "now", 3600.0)
    tasks = plan_tasks(store.study, store.by_key())
    outcome = run_ray(store, tasks, MACHINE, told, address="ignored: connected", limit=limit)
    assert outcome.signum == TIME_IS_OVER
    assert limit.reserve > 0  # as the cells told
    assert under_way(store)


def test_a_node_that_does_not_see_the_study_hands_its_run_over(store, tmp_path):
    class Remote:
        """Calls a method of the board as Ray's handles do."""

        def __getattr__(self, name):
            return type("Method", (), {"remote": staticmethod(getattr(board, name))})

    board = _Board()
    task = plan_tasks(store.study, {})[0]
    job = {
        "key": task.cell.key,
        "attempts": 0,
        "path": "/nowhere/study",
        "mark": "/nowhere/study/locks/mark",
        "study": (store.path / "study.yaml").read_text(),
        "machine": MACHINE,
        "code": [],
        "directory": "/nowhere",
    }
    arguments = list(sys.argv)
    answer = _run_cell(job, Remote())
    sys.argv = arguments
    assert answer["event"] == "ended"
    assert _run_cell(job, Remote())["record"] == answer["record"]  # its answer got lost: it is not trained again
    sys.argv = arguments
    assert task.cell.key in board.take()["cells"]
    assert store.records() == []
    engine = _Engine.__new__(_Engine)
    engine._store, engine._progress, engine._pending = store, Told(), []
    _unpack(answer["run"], tmp_path / "on the way")
    (tmp_path / "on the way/model.safetensors").write_bytes(b"changed")
    assert not engine._take_in(task, answer["record"], _pack(tmp_path / "on the way"))
    assert engine._pending == [task]
    assert "its model.safetensors was changed since it was written" in engine._progress.notes[0]
    assert not list((store.path / "runs").glob("*"))
    assert engine._take_in(task, answer["record"], answer["run"])
    assert not engine._take_in(task, answer["record"], answer["run"])
    assert store.records() == [answer["record"]]
    assert (store.path / answer["record"]["run"] / "summary.json").is_file()


def test_without_ray_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"csham\[ray\]"):
        run_ray(store, [], MACHINE, Told())
