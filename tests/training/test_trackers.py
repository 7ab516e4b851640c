"""Trackers: each gets every epoch once, whatever happens, and none of them stops a run."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

import csham
from csham.errors import UserError
from csham.training import config as config_module
from csham.training.checkpoints import load_checkpoint
from csham.training.config import check_trackers, resolve
from csham.training.interrupt import InterruptedRunError
from csham.training.loop import resume, train
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder


class Server(GeneralTracker):
    """Stands for W&B's: knows each run by its number, and takes no step twice."""

    name = "wandb"
    requires_logging_directory = False
    runs: dict = {}  # noqa: RUF012
    fails_at: tuple = ()

    def __init__(self, project, **more):
        super().__init__()
        self.project, self.more = project, more

    def start(self):
        if "start" in self.fails_at:
            raise RuntimeError("no route to http://me:secret@host/\nand much more")
        number = self.more["id"]
        self.run = self.runs.setdefault(number, {"steps": {}, "config": {}, "finished": 0, **self.more})
        self.tracker_run = SimpleNamespace(id=number, url="the server", offline=False)

    @property
    def tracker(self):
        self.tracker_run.step = 1 + max(self.run["steps"], default=-1)
        return self.tracker_run

    def store_init_configuration(self, values):
        if "settings" in self.fails_at:
            raise ValueError("no route to http://me:secret@host/")
        self.run["config"] |= values

    def log(self, values, step=None):
        if step in self.fails_at:
            raise OSError(28, "No space left on device")
        self.run["steps"].setdefault(step, {}).update(values)

    def finish(self):
        self.run["finished"] += 1


class Told(QuietProgress):
    def __init__(self, stop_after=0):
        self.notes, self.left = [], stop_after

    def note(self, text):
        self.notes.append(text)

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), 2)


@pytest.fixture
def server(monkeypatch):
    """A tracker named wandb that is there without W&B."""
    if not hasattr(GeneralTracker, "start"):
        pytest.skip("an older Accelerate starts trackers where it makes them")
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Server)
    monkeypatch.setattr(config_module, "find_spec", lambda name: name)
    monkeypatch.setattr(Server, "runs", {})
    monkeypatch.setattr(Server, "fails_at", ())
    return Server


@pytest.fixture
def tracked(settings):
    return {**settings, "backbone": "lenet5", "epochs": 3, "trackers": ("wandb",)}


def logged(server):
    (run,) = server.runs.values()
    return run


def test_every_epoch_and_the_final_numbers_go_to_the_server_and_no_places_do(server, tracked, tmp_path):
    told = Told()
    summary = train(resolve(tracked), run=tmp_path / "run", progress=told)
    run = logged(server)
    assert list(run["steps"]) == [1, 2, 3]
    history = RunFolder(tmp_path / "run").read_metrics()
    for row in history:
        assert run["steps"][row["epoch"]]["loss/val"] == pytest.approx(row["val_loss"], rel=1e-5)
    assert run["steps"][3]["final/test_top1"] == summary["top1"]
    assert (run["name"], run["finished"]) == ("run", 1)
    assert (run["config"]["backbone"], run["config"]["data"]) == ("lenet5", "animals")
    assert not [value for value in run["config"].values() if isinstance(value, str) and os.sep in value]
    assert "wandb has this run at the server" in told.notes
    assert not list((tmp_path / "run").glob("events.out.*"))  # which nobody asked for


def test_a_run_that_goes_on_goes_on_there_without_an_epoch_twice_or_none(server, tracked, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve(tracked), run=run, progress=Told(stop_after=15))  # in the third epoch
    there = logged(server)
    assert there["finished"] == 1
    del there["steps"][2]  # as of a process that was killed before it sent what it had saved
    resume(run)
    assert logged(server)["steps"].keys() == {1, 2, 3}
    resume(run, epochs=5)
    assert logged(server)["steps"].keys() == {1, 2, 3, 4, 5}
    assert json.loads((run / "trackers.json").read_text()) == {"wandb": next(iter(server.runs))}
    assert RunFolder(run).read_json("trackers.json")  # it is in the list of sums


def test_a_tracker_that_is_added_later_gets_all_epochs(server, tracked, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve({**tracked, "trackers": ()}), run=run, progress=Told(stop_after=15))
    assert server.runs == {}
    resume(run, trackers=("wandb",))
    assert list(logged(server)["steps"]) == [1, 2, 3]


def test_what_is_known_no_more_begins_anew(server, tracked, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(resolve(tracked), run=run, progress=Told(stop_after=15))
    (old,) = server.runs
    start = server.start

    def forgetful(self):
        if self.more["id"] == old:
            raise LookupError("no such run")
        start(self)

    monkeypatch.setattr(server, "start", forgetful)
    server.runs.clear()
    resume(run)
    assert old not in server.runs
    assert list(logged(server)["steps"]) == [1, 2, 3]


@pytest.mark.parametrize("at", ["start", "settings", 1, 2, 3])
def test_a_tracker_that_fails_is_left_out_in_one_sentence(server, tracked, tmp_path, monkeypatch, at):
    monkeypatch.setattr(server, "fails_at", (at,))
    told, run = Told(), tmp_path / "run"
    train(resolve({**tracked, "trackers": ("wandb", "tensorboard")}), run=run, progress=told)
    assert RunFolder(run).finished
    said = [note for note in told.notes if note.startswith("wandb failed")]
    assert len(said) == 1
    assert ("(no route to http://host/)" if isinstance(at, str) else "No space left on device") in said[0]
    assert str(run / "metrics.csv") in said[0]
    assert [each["finished"] for each in server.runs.values()] == [1] * (at != "start")  # none is left open
    assert len(list(run.glob("events.out.*"))) == 1
    assert load_checkpoint(RunFolder(run).last)["epoch"] == 3


def test_a_failure_is_said_to_who_wants_no_progress(server, tracked, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(server, "fails_at", (1,))
    train(resolve({**tracked, "epochs": 1}), run=tmp_path / "run")
    assert "wandb failed" in caplog.text


def test_trackers_change_nothing_that_is_computed(server, tracked, tmp_path):
    one = train(resolve(tracked), run=tmp_path / "one")
    other = train(resolve({**tracked, "trackers": ("none",)}), run=tmp_path / "other")
    assert (one["top1"], one["loss"]) == (other["top1"], other["loss"])


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_missing_is_named_before_anything_is_done(name, tracked, tmp_path, monkeypatch):
    monkeypatch.setattr(config_module, "find_spec", lambda _: None)
    message = rf'{name} is not installed. pip install {name}, or for all trackers: pip install "csham\[tracking\]"'
    with pytest.raises(UserError, match=message):
        train(resolve({**tracked, "trackers": (name,)}), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(("wandbb",), "unknown trackers 'wandbb'. Did you mean 'wandb'"), (("none", "wandb"), "none alone")],
)
def test_what_is_no_tracker(names, message):
    with pytest.raises(UserError, match=message):
        resolve({"data": "digits", "trackers": names})


def test_none_needs_no_library():
    check_trackers(["none"])


# In a process of its own, as both keep a run in the process; without a network.
REAL = """
import json, sys
from csham.training.config import resolve
from csham.training.loop import resume, train
from csham.training.interrupt import InterruptedRunError
from csham.training.progress import QuietProgress
import signal

class Stopping(QuietProgress):
    left = 8
    def note(self, text):
        print(text)
    def step(self, *_):
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)

config = resolve(json.loads(sys.argv[1]))
try:
    train(config, run="one", progress=Stopping())
except InterruptedRunError:
    print("stopped")
resume("one")
resume("one", epochs=3)
"""


def run_offline(tracked, place, name):
    source = str(Path(csham.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, *filter(None, sys.path)])}
    environment |= {"WANDB_MODE": "offline", "CSHAM_KERNELS": "reference"}
    words = json.dumps({**tracked, "trackers": [name], "epochs": 2})
    done = subprocess.run(
        [sys.executable, "-c", REAL, words], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stopped" in done.stdout
    assert "left out" not in done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow")
def test_mlflow_itself_has_one_run_of_all_epochs(tracked, tmp_path):
    run_offline(tracked, tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute("select name, status from runs").fetchall()
        steps = store.execute("select step from metrics where key = 'loss/val' order by step").fetchall()
        final = store.execute("select step from metrics where key = 'final/test_top1' order by step").fetchall()
        texts = [value for table in ("params", "tags") for (value,) in store.execute(f"select value from {table}")]
    assert runs == [("one", "FINISHED")]
    assert [step for (step,) in steps] == [1, 2, 3]
    assert [step for (step,) in final] == [2, 3]
    assert not [text for text in texts if str(tmp_path) in text or text.startswith("/")]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_wandb_itself_keeps_each_part_of_a_run_offline(tracked, tmp_path):
    said = run_offline(tracked, tmp_path, "wandb")
    assert "wandb is offline: wandb sync one/wandb/offline-run-" in said
    (number,) = json.loads((tmp_path / "one/trackers.json").read_text()).values()
    files = sorted((tmp_path / "one/wandb").glob(f"offline-run-*/run-{number}.wandb"))
    assert len(files) == 3  # one for each call, which wandb sync puts together
    content = files[-1].read_bytes()
    assert b"final/test_top1" in content
    assert str(tmp_path).encode() not in content
