"""Every state that a power cut may leave of a run: it goes on to the same result, or was not begun.

The file operations of a training are recorded. A crash keeps what was synced: contents by ``fsync`` of the file, names
by ``fsync`` of their folder. Of the names that were given or taken since, it keeps none, all, or any single one; of
contents that were not synced, the first half.
"""

import csv
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from csham.errors import UserError
from csham.training.checkpoints import load_checkpoint
from csham.training.config import resolve
from csham.training.loop import resume, train


class Disk:
    """Records what happens below a folder, as a disk sees it.

    Attributes:
        root: The folder.
        names: Files and folders whose names are on the disk: the content of a file by its path, None for a folder.
        pending: Names that were given (path, content) or taken (path, missing) since their folder was synced.
        states: What each crash would leave, in the order of time.
    """

    MISSING = object()

    def __init__(self, root, patch):
        self.root, self.names, self.pending, self.states = root, {}, [], []
        self._contents = {}  # of synced files, by inode
        for name in ("fsync", "rename", "replace", "mkdir"):
            patch.setattr(os, name, self._wrapped(getattr(os, name), getattr(self, f"_{name}")))

    def _wrapped(self, act, remember):
        def call(*args, **settings):
            if remember == self._fsync or any(
                self._inside(Path(arg)) for arg in args[:2] if isinstance(arg, str | Path)
            ):
                remember(act, args, settings)
                self._crash()
            else:
                act(*args, **settings)

        return call

    def _inside(self, path):
        return self.root in path.parents

    def _fsync(self, act, args, settings):
        act(*args)
        status = os.fstat(args[0])
        for path in (self.root, *self.root.rglob("*")):
            if path.exists() and os.path.samestat(path.stat(), status):
                if path.is_dir():
                    self._settle(path)
                else:
                    self._contents[status.st_ino] = path.read_bytes()

    def _settle(self, folder):
        for path in folder.iterdir():  # names that no operation told of: files that were created
            if path not in self.names and path not in [name for name, _ in self.pending]:
                self.names[path] = self._content(path)
        for name, content in [pair for pair in self.pending if pair[0].parent == folder]:
            self.pending.remove((name, content))
            self._apply(self.names, name, content)

    def _content(self, path):
        if path.is_dir():
            return None
        content = path.read_bytes()
        return content if self._contents.get(path.stat().st_ino) == content else content[: len(content) // 2]

    def _apply(self, names, path, content):
        for old in [old for old in names if old == path or path in old.parents]:
            del names[old]
        if content is not self.MISSING:
            names.update(content)

    def _rename(self, act, args, settings):
        source, target = map(Path, args)
        inside = [source, *source.rglob("*")] if source.is_dir() else [source]
        known = [path for path in inside if path == source or source.is_file() or path in self.names]
        content = {target / path.relative_to(source): self._content(path) for path in known}
        act(*args, **settings)
        self.pending += [(source, self.MISSING), (target, content)]

    _replace = _rename

    def _mkdir(self, act, args, settings):
        act(*args, **settings)
        self.pending.append((Path(args[0]), {Path(args[0]): None}))

    def _crash(self):
        choices = [[], self.pending, *([pair] for pair in self.pending)]
        for choice in choices:
            state = dict(self.names)
            for path, content in choice:
                self._apply(state, path, content)
            if state not in self.states:
                self.states.append(state)


def build(state, root, place):
    """Make what a crash left, at another place."""
    for path, content in sorted(state.items()):
        there = place / path.relative_to(root)
        if content is None:
            there.mkdir(parents=True, exist_ok=True)
        elif there.parent.is_dir():
            there.write_bytes(content)


def result(run):
    """Everything but the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in csv.DictReader(file)]
    timed = ("run", "seconds", "images_per_s")
    summary = {k: v for k, v in json.loads((run / "summary.json").read_text()).items() if k not in timed}
    return rows, summary


def weights(run):
    return [load_checkpoint(run / "checkpoints" / name)["model"] for name in ("last.ckpt", "best.ckpt")]


@pytest.fixture
def crashes(settings, tmp_path, monkeypatch):
    """A finished run, and the states that a crash may have left while it was made."""
    root = tmp_path / "disk"
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        train(resolve({**settings, "backbone": "lenet5", "checkpoint_steps": 4}), run=root / "runs" / "one")
    return root, disk.states


def goes_on(root, states, place):
    """Resume each state; return how many had begun."""
    whole, begun = root / "runs" / "one", 0
    for state in states:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        build(state, root, place)
        run = place / "runs" / "one"
        if not run.exists():
            continue
        begun += 1
        resume(run)
        assert result(run) == result(whole)
        for ours, theirs in zip(weights(run), weights(whole), strict=True):
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    return begun


def test_a_run_goes_on_to_the_same_bits_from_some_states_of_a_power_cut(crashes, tmp_path):
    root, states = crashes
    assert goes_on(root, states[2::6], tmp_path / "after") > 4


@pytest.mark.slow
@pytest.mark.long
def test_a_run_goes_on_to_the_same_bits_from_every_state_of_a_power_cut(crashes, tmp_path):
    root, states = crashes
    assert goes_on(root, states, tmp_path / "after") > 30


def test_the_recording_would_tell_a_file_that_is_not_synced(settings, tmp_path, monkeypatch):
    """The contents of a run whose writer syncs folders alone are torn in some state."""
    root, sync = tmp_path / "disk", os.fsync
    root.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(root, patch)
        recorded = os.fsync
        patch.setattr(
            os, "fsync", lambda handle: (recorded if stat.S_ISDIR(os.fstat(handle).st_mode) else sync)(handle)
        )
        train(resolve({**settings, "backbone": "lenet5", "epochs": 1}), run=root / "runs" / "one")
    with pytest.raises(UserError):
        goes_on(root, disk.states, tmp_path / "after")
