"""Cells that take turns in one process: what each leaves is what it leaves alone, whatever becomes of the others."""

import contextlib
import gc
import itertools
import sys

import pytest
import torch

from csham.backbones.own import use_code
from csham.study.cell import CellRunner
from csham.study.grid import Network
from csham.study.together import Together, _Cell, _Device
from csham.training.checkpoints import load_checkpoint
from csham.training.interrupt import StopRequest
from csham.training.progress import QuietProgress

MACHINE = {"device": "cpu", "compile": False}

# Draws at every answer, in evaluation too; and one that ends its run.
OWN = """
import weakref
import torch

class Noisy(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.weight * (0.9 + 0.2 * torch.rand(x.shape[1], 1, 1))

class Faulty(Noisy):
    alive = weakref.WeakSet()

    def __init__(self, channels):
        super().__init__(channels)
        self.alive.add(self)
        self.steps = 0

    def forward(self, x):
        self.steps += 1
        if self.steps == 4 and self.training:
            raise ValueError("no such channel")
        return super().forward(x)
"""


def test_a_gpu_has_streams_for_so_many_runs(monkeypatch):
    on_a_cpu = Together(None, "cpu", 100, StopRequest())
    monkeypatch.setattr("csham.study.together.choose_device", lambda device: "cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert (on_a_cpu.room.runs, Together(None, "cuda", 100, StopRequest()).room.runs) == (100, 32)


class Quiet(QuietProgress):
    """Does something after some steps."""

    def __init__(self, after=0, then=lambda: None):
        self.left, self.then = after, then

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            self.then()


def train_together(store, progress=None, stop=None, look=lambda ended: None):
    """Train a study's cells in turns; return what was told of each, in the order of their ends."""
    stop = stop or StopRequest()
    runner = CellRunner(store, MACHINE, stop=stop, shares_process=True)
    together, told = Together(runner, "cpu", 4, stop), []
    waiting = store.study.cells()
    for number in itertools.count():
        if waiting and number % 3 == 0 and stop.signum is None:  # not in step with each other
            cell = waiting.pop(0)
            together.begin(cell.key, cell.network.label, 0, (progress or {}).get(cell.label, QuietProgress()))
        for ended in together.go_round():
            told.append(ended)
            look(ended)
        if not together:
            break
    assert not runner.must_restart
    return told


def weights(store, cell, name="last"):
    return load_checkpoint(store.run_folder(cell.name) / "checkpoints" / f"{name}.ckpt")["model"]


@pytest.fixture
def same(timeless):
    """Function that compares the cells of two studies that are done, bit by bit."""

    def compare(ours, theirs, cells):
        for cell in cells:
            one, other = (store.by_key()[cell.key] for store in (ours, theirs))
            assert timeless(one) == timeless(other), cell.label
            for name in ("last", "best"):
                one, other = weights(ours, cell, name), weights(theirs, cell, name)
                assert all(torch.equal(value, other[key]) for key, value in one.items()), cell.label

    return compare


@pytest.fixture
def networks(own_names, tmp_path):
    """Plain, and with attentions of a user's own: one that draws, and one that raises."""
    (tmp_path / "own_gates.py").write_text(OWN)
    for name in ("Noisy", "Faulty"):
        use_code(f"own_gates:{name}", tmp_path)
    return tuple(Network("lenet5", name).with_code() for name in ("none", "own_gates:Noisy", "own_gates:Faulty"))


@pytest.mark.slow
def test_cells_in_turns_that_are_stopped_and_go_on_end_as_alone_and_one_that_fails_fails_alone(
    make_store, networks, same
):
    alone, store = (make_store(name, networks=networks, seeds=(0,)) for name in ("alone", "study"))
    cells, stop, freed = store.study.cells(), StopRequest(), []

    def look(ended):
        if ended.record:
            gc.collect()
            freed.append(len(sys.modules["own_gates"].Faulty.alive))

    told = train_together(store, progress={cells[0].label: Quiet(11, lambda: stop.request(15))}, stop=stop, look=look)
    assert freed == [0]  # while the others were under way
    (failed,) = store.records()
    assert (failed["label"], failed["error"]["message"]) == (cells[2].network.label, "no such channel")
    assert [ended.stopped for ended in told] == [False, True, True]
    assert not any(store.is_claimed(cell.key) for cell in cells)
    contents = [load_checkpoint(store.run_folder(cell.name) / "checkpoints/last.ckpt") for cell in cells[:2]]
    assert [(content["epoch"], content["step"] > 0) for content in contents] == [(1, True), (1, True)]
    told = train_together(store)
    assert sorted(ended.record is None for ended in told) == [False, False, True]  # what has failed is over
    for cell in cells[:2]:
        CellRunner(alone, MACHINE).run(cell.key)
    same(store, alone, cells[:2])
    ours, theirs = (each.by_key()[cells[0].key] for each in (store, alone))
    assert [one["environment"].get("shares_process") for one in (ours, theirs)] == [True, None]


def test_what_torch_has_one_of_is_each_cells_own():
    def cell(seed, exactly):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(exactly)
        torch.backends.cudnn.benchmark = not exactly
        for _ in range(3):
            yield 1.0
            seen.append((seed, float(torch.rand(())), torch.are_deterministic_algorithms_enabled()))
            seen[-1] += (torch.backends.cudnn.benchmark,)

    before, seen = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark), []
    device = _Device("cpu")
    cells = [_Cell(cell(seed, exactly), device) for seed, exactly in ((0, True), (1, False))]
    for _ in range(4):
        for one in cells:
            with contextlib.suppress(StopIteration), one.has_turn():
                next(one.turns)
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    for seed, exactly in ((0, True), (1, False)):
        torch.manual_seed(seed)
        expected = [(seed, float(torch.rand(())), exactly, not exactly) for _ in range(3)]
        assert [one for one in seen if one[0] == seed] == expected


@pytest.mark.parametrize(("name", "which"), [("cuda:1", ("cuda:1",)), ("cuda", ("cuda",)), ("mps", ())])
def test_of_several_gpus_only_the_one_that_was_named_is_touched(monkeypatch, name, which):
    touched = []

    class Module:
        synchronize = staticmethod(lambda *given: touched.append(given))
        get_rng_state = staticmethod(lambda *given: touched.append(given))
        set_rng_state = staticmethod(lambda state, *given: touched.append(given))

    monkeypatch.setattr(torch, "get_device_module", {name.partition(":")[0]: Module}.get)
    device = _Device(name)
    device.synchronize()
    device.put_back(device.state())
    assert touched == [which] * 3


def test_a_cell_that_finds_no_memory_is_tried_with_fewer_and_has_failed_alone(make_store):
    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    store, stop, told = make_store(), StopRequest(), []
    together = Together(CellRunner(store, MACHINE, stop=stop), "cpu", 4, stop)
    for cell in store.study.cells()[:3]:
        together.begin(cell.key, cell.network.label, 0, Quiet(2, out_of_memory))
    while together:
        told += [(ended.record and ended.record["status"], together.room.runs) for ended in together.go_round()]
    assert told == [(None, 2), (None, 1), ("failed", 1)]
    assert [record["attempts"] for record in store.records()] == [1]


@pytest.mark.long
@pytest.mark.slow
def test_compiled_cells_in_turns_end_as_alone(make_store, same, monkeypatch):
    monkeypatch.setitem(MACHINE, "compile", True)
    alone, store = make_store("alone"), make_store()
    cells = store.study.cells()
    train_together(store)
    for cell in cells:
        CellRunner(alone, MACHINE).run(cell.key)
    same(store, alone, cells)
