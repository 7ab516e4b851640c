"""Steps that are replayed, on a CPU: a recording of operations stands in for a CUDA graph and keeps all that one keeps.

Tensors, scalars and shapes are those of the step that was recorded. What a later step should have of its own, and does
not read from tensors, comes out as another result than the loop's.
"""

import csv
import random
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csham.data import prepare
from csham.errors import UserError
from csham.training import graphs, machine
from csham.training.averaging import Average
from csham.training.checkpoints import load_checkpoint
from csham.training.config import resolve
from csham.training.evaluation import evaluate
from csham.training.graphs import CannotReplayError, GraphedAnswers, GraphedSteps, NoHostValues, Replays
from csham.training.interrupt import InterruptedRunError, StopRequest
from csham.training.loop import _resumed, resume, train, train_in_turns
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.session import start_session
from csham.training.step import Step, Steps
from csham.training.steps import steps_of_update
from csham.training.turns import drain


class Recording(TorchDispatchMode):
    """Operations of what ran within, and the tensors that they had."""

    def __init__(self):
        super().__init__()
        self.calls, self.stores = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tensors_of(args, kwargs):
            self.keep(tensor, lambda store: store.clone())
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            self.keep(tensor, lambda store: None)
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def keep(self, tensor, value):
        store = tensor.untyped_storage()
        if store._cdata not in self.stores:
            self.stores[store._cdata] = (store, value(store))

    def put_back(self):
        """Undo it: capturing runs nothing."""
        for store, value in self.stores.values():
            if value is not None and not torch.equal(bytes_of(store), bytes_of(value)):  # the images are read-only
                store.copy_(value)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for mine, new in zip(tensors_of(result), tensors_of(again), strict=True):
                if mine.data_ptr() != new.data_ptr():  # else it is a view of what was there, or in place
                    mine.untyped_storage().copy_(new.untyped_storage())


def bytes_of(store):
    return torch.empty(0, dtype=torch.uint8).set_(store)


def tensors_of(*trees):
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


@pytest.fixture
def recorded(monkeypatch):
    """Let runs on the CPU replay; returns the recordings that they make."""
    made = []

    def captured(self, function):
        recording = Recording()
        try:
            with torch.random.fork_rng(devices=[]), recording:
                function()
        finally:
            recording.put_back()
        made.append(recording)
        return recording.replay

    monkeypatch.setattr(Replays, "captured", captured)
    monkeypatch.setattr(machine, "_no_graph", lambda kind, precision: None)
    return made


@pytest.fixture(scope="module")
def dataset(images):
    return prepare(str(images), image_size=16)


@pytest.fixture
def session_of(settings, dataset, tmp_path):
    """Function that makes a session of a run's settings, always with the same first weights."""

    def make(**given):
        small = {**settings, "backbone": "resnet14", "precision": "fp32", "epochs": 3, "graph": True}
        config = resolve(small | given)
        return start_session(config, dataset, RunFolder(tmp_path / "run"), QuietProgress())

    return make


def trained(session, updates, epoch=1, first=0):
    """Train some updates in a row, replayed where the session says so; return all that they changed."""
    sums, graph = session.new_state().sums, session.config.graph
    steps = GraphedSteps(session, sums, Replays(session)) if graph else Steps(session, sums)
    session.begin_epoch(epoch)
    step, count = first, len(session.train_batches)
    for _ in range(updates):
        if step == count:
            epoch, step = epoch + 1, 0
            session.begin_epoch(epoch)
        together = steps_of_update(step, count, session.config.accumulate)
        steps.run(epoch, together, len(together))
        step = together.stop
    networks = [session.network] + ([session.average.network] if session.average else [])
    weights = {f"{n}.{name}": v for n, network in enumerate(networks) for name, v in network.state_dict().items()}
    states = session.optimizer.state_dict()["state"]
    moments = {f"{n}.{name}": v for n, state in states.items() for name, v in state.items()}
    assert all(type(group["lr"]) is float for group in session.optimizer.param_groups)
    return {"sums": sums, **weights, **moments}


def test_a_run_of_a_gpu_is_measured_elsewhere_and_goes_on_as_the_machine_can(finished, copy_unlisted, tmp_path):
    run = copy_unlisted(finished, tmp_path / "run")
    text = (run / "config.yaml").read_text().replace("graph: false", "graph: true")
    (run / "config.yaml").write_text(text)
    assert evaluate(run, device="cpu").summary["images"] == 12
    config, added = RunFolder(run).read_config(), dict.fromkeys(("epochs", "schedule", "lr", "patience"))
    assert config.graph is True
    assert _resumed(config, {}, added).graph == "auto"  # there may be several processes now
    assert _resumed(config, {"graph": True}, added).graph is True
    assert _resumed(replace(config, graph=False), {}, added).graph is False
    assert _resumed(replace(config, graph=False), {"device": "cuda"}, added).graph == "auto"


def differing(ours, theirs):
    assert list(ours) == list(theirs)
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


FAST = {"backbone": "lenet5"}
RUNS = {
    "plain": {},
    "csham sequential": {"attention": "csham"},
    "csham transfer": {"attention": "csham", "strategy": "transfer", "gated": True},
    "se": {"attention": "se", "recompute_norms": True},
    "cbam": {"attention": "cbam", "precision": "bf16"},
    "paper": FAST | {"recipe": "paper", "label_smoothing": 0.1},
    "average": FAST | {"ema": 0.9, "clip_norm": 0.1, "class_weights": "balanced"},
    "rates of parts": FAST | {"head_lr": 0.5, "schedule": "cosine", "warmup_epochs": 1.0},
    "accumulated": FAST | {"accumulate": 2},
    "resized": FAST | {"crop": "resized"},
    "made outside": FAST | {"mixup": 0.2, "cutmix": 1.0, "augment": "trivial", "accumulate": 2},
    "small batches": FAST | {"batch_size": 3, "last_batch": "drop"},
}


@pytest.mark.parametrize("name", RUNS)
def test_replayed_steps_are_those_of_the_loop(session_of, recorded, name):
    """From the middle of an epoch two as they are, one recorded, then replayed on into the next epoch."""
    plain = trained(session_of(**RUNS[name], graph=False), 5, first=2)
    replayed = trained(session_of(**RUNS[name]), 5, first=2)
    assert 1 <= len(recorded) <= 2
    assert differing(replayed, plain) == []


def test_what_a_step_reads_of_the_host_comes_out_as_another_result(session_of, recorded, monkeypatch):
    """The stand-in is one: with a learning rate that is a number, replayed steps keep the recorded one's."""
    plain = trained(session_of(**FAST, graph=False), 5)
    monkeypatch.setattr("csham.training.step.set_rates", set_numbers)
    monkeypatch.setattr(NoHostValues, "_fault", staticmethod(lambda func, args: None))
    assert differing(trained(session_of(**FAST), 5), plain)


def set_numbers(optimizer, rates):
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = float(rate)


def test_a_backbone_that_is_let_go_is_another_graph(session_of, recorded, tmp_path):
    session = session_of(**FAST)
    torch.save(session.network.state_dict(), tmp_path / "lenet5.pt")
    given = {**FAST, "recipe": "finetune", "weights_file": str(tmp_path / "lenet5.pt"), "freeze_backbone": 1}
    count = len(session.train_batches)
    replayed, plain = (trained(session_of(**given, graph=graph), count + 4, epoch=0) for graph in (True, False))
    assert len(recorded) == 2
    assert differing(replayed, plain) == []


def test_adamw_counts_its_steps_on_the_device(session_of, recorded):
    given = {**FAST, "optimizer": "adamw", "lr": 0.003, "schedule": "constant"}
    replayed, plain = (trained(session_of(**given, graph=graph), 6) for graph in (True, False))
    assert differing({k: v for k, v in replayed.items() if k.endswith(".step")},
                     {k: v for k, v in plain.items() if k.endswith(".step")}) == []  # fmt: skip
    for name, value in plain.items():  # the rates on a GPU are float32
        torch.testing.assert_close(replayed[name], value, rtol=1e-5, atol=1e-6, msg=name)


class Odd(nn.Module):
    """Between a network's last feature and its head: does what the test tells it."""

    def __init__(self, head, act):
        super().__init__()
        self.head, self.act, self.calls = head, act, 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.act(x))


def dropped(x):
    return nn.functional.dropout(x, 0.5)


REFUSED = {
    "reads a value back": lambda x: x * 2 if x.sum().item() > 0 else x,
    "picks by a mask": lambda x: x + x[x > 0].sum(),
    "has a shape that depends on values": lambda x: x + x.nonzero().sum(),
    "makes a tensor of a number of Python's": lambda x: x * torch.tensor(0.5),
    "has a tensor on meta": lambda x: x + torch.zeros(x.shape, device="meta").shape[0] * x.to("meta").shape[1],
    "draws random numbers on the host": lambda x: x * random.random(),
    "no such operation": lambda x: (_ for _ in ()).throw(RuntimeError("no such operation")) if Odd.broken else x,
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_replayed_goes_on_as_it_is(session_of, recorded, monkeypatch, why):
    """With the reason, and as if nothing had been tried: a network that fails in the middle of a step is put back."""
    monkeypatch.setattr(Odd, "broken", False, raising=False)
    notes, results = [], []
    for graph in (True, False):
        session = session_of(**FAST, graph=graph)
        session.network.fc = Odd(session.network.fc, REFUSED[why])
        session.graph_was_chosen = True
        session.folder.path.mkdir(exist_ok=True)
        session.progress.note = notes.append
        random.seed(5)
        if why == "no such operation":
            monkeypatch.setattr(Replays, "captured", refuse_to_capture)
        results.append(trained(session, 5))
        assert session.config.graph is False
    assert not recorded
    assert [note for note in notes if why in note]
    assert "draws" in why or differing(*results) == []


def refuse_to_capture(self, function):
    Odd.broken = True
    try:
        function()
    finally:
        Odd.broken = False


def test_random_numbers_of_a_step_are_those_of_its_seed(session_of, recorded):
    results = []
    for given in ({}, {"graph": False}):
        session = session_of(**FAST, **given)
        session.network.fc = Odd(session.network.fc, dropped)
        results.append(trained(session, 6))
    assert len(recorded) == 1
    assert differing(*results) == []


def test_random_numbers_of_several_seeds_are_not_replayed(session_of, recorded):
    results, notes = [], []
    for graph in (True, False):
        session = session_of(**FAST, graph=graph, accumulate=2)
        session.network.fc = Odd(session.network.fc, dropped)
        session.graph_was_chosen, session.progress.note = True, notes.append
        session.folder.path.mkdir(exist_ok=True)
        results.append(trained(session, 4))
    assert not recorded
    assert "seeded anew for each of the steps" in " ".join(notes)
    assert differing(*results) == []


def test_graphs_that_were_asked_for_are_an_error(session_of, recorded):
    session = session_of(**FAST)
    session.network.fc = Odd(session.network.fc, REFUSED["reads a value back"])
    with pytest.raises(UserError, match=r"--graph: .*_local_scalar_dense.* reads a value back. Use --no-graph"):
        trained(session, 2)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def full_at(monkeypatch, owner, name, call, error=OUT_OF_MEMORY):
    """Let a function find no memory once it has done what it does, the first time or a later one."""
    told, function = [], getattr(owner, name)

    def fill(*args, **kwargs):
        result = function(*args, **kwargs)
        told.append(name)
        if len(told) == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, fill)


# Of the first update: watched, captured. Of the first that trains the backbone: beside the graph of the other.
@pytest.mark.parametrize("call", [2, 3, 4])
def test_where_graphs_leave_no_memory_the_run_goes_on_without(session_of, recorded, monkeypatch, tmp_path, call):
    """An update is taken back that had changed weights, their average and momentum, and had begun the backbone's."""
    session, notes = session_of(**FAST), []
    assert len(session.train_batches) == 6
    torch.save(session.network.state_dict(), tmp_path / "lenet5.pt")
    given = {**FAST, "recipe": "finetune", "weights_file": str(tmp_path / "lenet5.pt"), "freeze_backbone": 1}
    given |= {"optimizer": "sgd", "momentum": 0.9, "ema": 0.9}
    plain = trained(session_of(**given, graph=False), 9, epoch=0)
    session = session_of(**given)
    session.graph_was_chosen, session.progress.note = True, notes.append
    session.folder.path.mkdir()
    full_at(monkeypatch, Average, "update", call)
    assert differing(trained(session, 9, epoch=0), plain) == []
    assert len(recorded) == (call == 4)
    assert len([note for note in notes if "out of memory" in note]) == 1
    assert session.config.graph is False


def test_where_graphs_leave_no_memory_for_answers_they_go(settings, recorded, monkeypatch, tmp_path):
    given = {**settings, **FAST, "precision": "fp32"}
    train(resolve({**given, "graph": False}), run=tmp_path / "plain")
    full_at(monkeypatch, graphs, "answers", 1)
    train(resolve(given), run=tmp_path / "run")
    assert len(recorded) == 1
    assert RunFolder(tmp_path / "run").read_config().graph is False
    assert timeless(tmp_path / "run") == timeless(tmp_path / "plain")


def test_graphs_without_memory_are_an_error_that_names_the_way_on(session_of, recorded, monkeypatch):
    full_at(monkeypatch, Step, "update", 2)
    with pytest.raises(UserError, match=r"--graph: .*out of memory.* Use --no-graph"):
        trained(session_of(**FAST), 2)
    full_at(monkeypatch, Step, "update", 1)  # there is no graph yet
    with pytest.raises(torch.OutOfMemoryError):
        trained(session_of(**FAST), 2)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, RuntimeError("CUDA error: out of memory")])
def test_beside_other_runs_memory_is_theirs_to_make_room_for(settings, recorded, monkeypatch, tmp_path, error):
    full_at(monkeypatch, Step, "update", 3, error)
    with pytest.raises(UserError, match=r"Try --batch-size 4, .* --no-graph needs less"):
        drain(train_in_turns(resolve({**settings, **FAST}), run=tmp_path / "run", stop=StopRequest()))
    assert RunFolder(tmp_path / "run").read_config().graph is True


def test_graphs_are_captured_anew_where_the_generator_they_draw_from_was_replaced(session_of, recorded, monkeypatch):
    session = session_of(**FAST)
    steps = GraphedSteps(session, session.new_state().sums, Replays(session))
    session.begin_epoch(1)
    for step in range(6):
        monkeypatch.setattr(Replays, "generators", step // 4)
        steps.run(1, range(step, step + 1), 1)
    assert len(recorded) == 2


def test_what_is_not_compiled_after_all_is_watched_as_eager_code_is(session_of):
    session = session_of(**FAST, graph=False)
    session.config = replace(session.config, compile=True)
    replays = Replays(session)
    with replays.watched():
        torch.ones(1).item()
    session.config = replace(session.config, compile=False)
    with pytest.raises(CannotReplayError, match="reads a value back"), replays.watched():
        torch.ones(1).item()


def test_a_run_is_that_of_the_loop(settings, recorded, tmp_path):
    """Evaluations replayed too; stopped in the middle of an epoch, and gone on with."""
    given = {**settings, **FAST, "precision": "fp32", "batch_size": 4, "track_test": True}
    plain, run = tmp_path / "plain", tmp_path / "run"
    train(resolve({**given, "graph": False}), run=plain)
    assert not recorded
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=run, progress=Stopping(5))
    assert len(recorded) == 1
    resume(run)
    assert len(recorded) >= 4  # training, validation, test
    assert timeless(run) == timeless(plain)
    ours, theirs = (load_checkpoint(RunFolder(path).last) for path in (run, plain))
    assert differing(ours["model"], theirs["model"]) == []
    assert ours["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]


class Stopping(QuietProgress):
    """Sends this process a signal after some steps."""

    def __init__(self, after):
        self.left = after

    def step(self, where, done, loss, images_per_s):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def timeless(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [row | {"seconds": 0, "images_per_s": 0} for row in csv.DictReader(file)]


@pytest.mark.parametrize("replayed", [True, False])
def test_answers_are_those_of_the_network(session_of, recorded, replayed):
    session = session_of(**FAST)
    session.graph_was_chosen = True
    session.folder.path.mkdir()
    if not replayed:
        session.network.fc = Odd(session.network.fc, REFUSED["reads a value back"])
    graphed = GraphedAnswers(session, Replays(session))
    for _ in range(2):
        with torch.no_grad():
            for value in session.network.parameters():
                value.mul_(1.01)
        answered = list(graphed.of("train", keep=True))
        session.network.eval()
        for (rows, count, columns), batch in zip(answered, session.evaluation_batches("train").in_order(), strict=True):
            assert (rows == batch.indices).all()
            assert count == batch.count
            assert torch.equal(columns[0], batch.labels)
            with torch.no_grad():
                assert torch.equal(columns[-1], session.network(batch.images).softmax(1))
    assert len(recorded) == replayed
    assert session.config.graph is replayed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error:Synchronization debug mode")
@pytest.mark.parametrize("name", [*RUNS, "dropout"])
def test_a_gpu_replays_what_the_loop_does(session_of, monkeypatch, name):
    results = []
    for captured in (Replays.captured, lambda self, function: function):
        monkeypatch.setattr(Replays, "captured", captured)
        session = session_of(**RUNS.get(name, FAST), device="cuda", graph=True)
        if name == "dropout":
            session.network.fc = Odd(session.network.fc, dropped)
        results.append(trained(session, 5, first=2))
    for key, value in results[1].items():  # sums in the order in which threads come
        torch.testing.assert_close(results[0][key], value, rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("why", REFUSED)
def test_a_gpu_goes_on_where_steps_cannot_be_replayed(session_of, monkeypatch, why):
    monkeypatch.setattr(Odd, "broken", False, raising=False)
    session, notes = session_of(**FAST, device="cuda"), []
    session.network.fc = Odd(session.network.fc, REFUSED[why])
    session.graph_was_chosen, session.progress.note = True, notes.append
    session.folder.path.mkdir()
    trained(session, 4)
    assert session.config.graph is ("such" in why)
    assert bool(notes) is ("such" not in why)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["none", "csham"])
def test_a_gpu_goes_on_to_the_same_bits(settings, tmp_path, attention):
    given = {**settings, "device": "cuda", "deterministic": True, "batch_size": 2, "attention": attention}
    train(resolve(given), run=tmp_path / "whole")
    with pytest.raises(InterruptedRunError):
        train(resolve(given), run=tmp_path / "stopped", progress=Stopping(1))
    resume(tmp_path / "stopped")
    ours, theirs = (load_checkpoint(RunFolder(tmp_path / name).last)["model"] for name in ("stopped", "whole"))
    assert differing(ours, theirs) == []
