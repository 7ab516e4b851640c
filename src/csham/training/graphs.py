"""Replaying the steps of a run as CUDA graphs, and the reasons why some cannot be.

An update of the weights, or the answers to a batch, runs as it is twice: what is made when it is first needed (states
of the optimizer, compiled kernels, workspaces) is made then, and the second time shows whether it is a function of
tensors. Then it is captured, which runs nothing, and replayed. All of that is one function, on the same rows of an
epoch's draws and rates, which are on the device: a counter beside them picks the row.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from csham.errors import first_line_of
from csham.training.evaluation import Answered, answers
from csham.training.optimizer import set_rates
from csham.training.session import Session
from csham.training.step import Step, Steps, rates_of_step, seed_step
from csham.training.streams import own_stream

__all__ = ["CannotReplayError", "GraphedAnswers", "GraphedSteps", "NoHostValues", "Replays"]


class CannotReplayError(Exception):
    """A function is none of tensors alone; says why."""


class NoHostValues(TorchDispatchMode):
    """While entered, refuses operations that a replay would not repeat.

    These read a value back, or have a shape that depends on one, take or make a tensor on another device, or make one
    of a number of Python's.

    Args:
        device: Device on which all tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._kind = device.type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or raise ``CannotReplayError``."""
        if fault := self._fault(func, args):
            raise CannotReplayError(f"{func} {fault}")
        result = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        kinds = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)} - {self._kind}
        if kinds:
            raise CannotReplayError(f"{func} has a tensor on {', '.join(sorted(kinds))} among those on {self._kind}")
        return result

    @staticmethod
    def _fault(func: Any, args: Any) -> str | None:
        if torch.Tag.data_dependent_output in func.tags:
            return "reads a value back"
        if func is torch.ops.aten.lift_fresh.default:
            return "makes a tensor of a number of Python's"
        if func.overloadpacket in _INDEXING:
            masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
            return "picks by a mask, so that a shape depends on values" if masks else None
        return "has a shape that depends on values" if torch.Tag.dynamic_output_shape in func.tags else None


_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class Replays:
    """Captures functions of one run, whose graphs share their memory, since no two of them run at once.

    Args:
        session: Session of the run.
        alone: False if the process has other runs, so that one that finds no memory beside them waits for them, and
            does not go on without graphs.

    Attributes:
        functions: All that are captured, or will be.
    """

    _drawn: ClassVar[torch.cuda.Event | None] = None  # after the last replay that drew random numbers, of any run
    generators: ClassVar[int] = 0  # that broke and were replaced; what is captured draws from the one of its time

    def __init__(self, session: Session, *, alone: bool = True) -> None:
        self._session, self._device = session, session.accelerator.device
        self.alone = alone
        self.functions: list[_Replayed] = []
        on_gpu = self._device.type == "cuda"
        self._stream = own_stream(self._device) if on_gpu else None
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run what is within on the stream that captures, as capturing wants it of all that comes before."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def captured(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return what replays a function, which is not run."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        try:
            # Other threads, such as a tracker's, may do what they like meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except Exception:
            torch.cuda.set_stream(before)  # torch 2.8 stays on the other where capturing could not even be ended
            self._repair_generator()
            raise
        replay: Callable[[], None] = graph.replay
        return replay

    def _repair_generator(self) -> None:
        """Let the generator draw again where it goes on believing that it is being captured.

        Up to torch 2.11 a capture that could not be ended leaves it so.
        """
        try:
            torch.rand(1, device=self._device)
        except torch.OutOfMemoryError:
            pass
        except RuntimeError:
            whole = torch.Generator(self._device).graphsafe_get_state()
            torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(whole)
            Replays.generators += 1

    def let_go(self) -> None:
        """Let go of every graph, and of the memory that they alone use."""
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        for function in self.functions:
            function.replay = None
        if self._stream is not None:
            gc.collect()  # what an error held is in circles
            torch.cuda.empty_cache()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let graphs that draw random numbers wait on the GPU for those of other runs of this process.

        Versions of torch differ in whether each graph has a place of its own for the seed that a replay writes.
        """
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._device)
        if Replays._drawn is not None:
            current.wait_event(Replays._drawn)
        yield
        Replays._drawn = current.record_event()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refuse what is within if it is no function of tensors alone."""
        # Compiled code looks into no dispatch mode.
        compiled = self._session.config.compile is True
        with self._without_waiting(), nullcontext() if compiled else NoHostValues(self._device):
            yield

    @contextmanager
    def _without_waiting(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode")  # that it may miss some
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class _Replayed:
    """Function of tensors that it changes in place: run as it is twice, then captured and replayed.

    Args:
        function: The function.
        keep: Keeps the values of all that outlives a call; returns what puts them back.
        replays: Captures it.
        checking: Makes a context for its second run, which raises at its end what the run has shown.
        capturing: Makes a context for it to be captured in.

    Attributes:
        replay: Replays it; None before it is captured.
    """

    def __init__(
        self,
        function: Callable[[], None],
        keep: Callable[[], Callable[[], None]],
        replays: Replays,
        checking: Callable[[], AbstractContextManager[None]] = nullcontext,
        capturing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._function, self._keep, self._replays = function, keep, replays
        self._checking, self._capturing = checking, capturing
        self._calls: list[Callable[[], None]] = [self._run, self._try]
        self.replay: Callable[[], None] | None = None
        self._generators = 0
        replays.functions.append(self)

    def __call__(self) -> None:
        """Run or replay it.

        Raises:
            CannotReplayError: It is no function of tensors alone, or finds no memory beside graphs. Nothing has changed
                then.
        """
        if self._calls:
            self._calls[0]()
            del self._calls[0]
            return
        if self.replay is None or self._generators != Replays.generators:
            self.replay = None
            self.replay, self._generators = self._capture(), Replays.generators
        self.replay()

    def _run(self) -> None:
        beside_graphs = any(function.replay is not None for function in self._replays.functions)
        with self._refused(torch.OutOfMemoryError) if beside_graphs else nullcontext(), self._replays.beside():
            self._function()

    def _try(self) -> None:
        # Whatever a network of somebody's own may raise.
        with self._refused(Exception), self._checking(), self._replays.beside(), self._replays.watched():
            self._function()

    def _capture(self) -> Callable[[], None]:
        with self._refused(Exception, "capturing failed: ", runs=False), self._capturing():  # likewise
            return self._replays.captured(self._function)

    @contextmanager
    def _refused(self, errors: type[Exception], what: str = "", *, runs: bool = True) -> Iterator[None]:
        """Put everything back where such an error comes from what is within, and raise that it cannot be replayed."""
        put_back = None
        try:
            put_back = self._keep() if runs else None
            yield
        except errors as err:
            if not self._replays.alone and _ran_out_of_memory(err):
                raise torch.OutOfMemoryError(str(err)) from err
            if put_back is not None:
                put_back()
            raise CannotReplayError(what + first_line_of(err)[:300]) from err


def _keeping(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Keep the values of tensors; return what puts them back."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def put_back() -> None:
        for tensor, value in before:
            tensor.copy_(value)

    return put_back


def _ran_out_of_memory(err: Exception) -> bool:
    """Return True for an error that comes of a lack of memory, which ending a capture after it may hide."""
    lacks = any(isinstance(one, torch.OutOfMemoryError) for one in (err, err.__context__))
    return lacks or "out of memory" in str(err)


class GraphedSteps:
    """Steps of a run, replayed; :class:`csham.training.step.Steps` where they turn out not to be functions of tensors.

    Batches that are no function of their draws alone (:attr:`csham.data.batches.Batches.cut_by_draws`) are made as
    ever and copied to where the graph reads them.

    Args:
        session: Session of the run.
        sums: As in :class:`csham.training.step.Step`.
        replays: Captures them.
    """

    def __init__(self, session: Session, sums: Tensor, replays: Replays) -> None:
        self._session, self._sums, self._replays = session, sums, replays
        self._step, self._plain = Step(session, sums), Steps(session, sums)
        self._rows = _Rows(session)
        self._made: list[list[Tensor]] = []
        self._graphs: dict[tuple[Any, ...], _Replayed] = {}
        self._is_capturing = self._draws = False
        self._now = (0, range(0))

    def run(self, epoch: int, steps: range, together: int) -> None:
        """Train with batches of one update of the weights, and do it, as ``Steps`` does."""
        session = self._session
        if not session.config.graph:
            self._plain.run(epoch, steps, together)
            return
        self._now = epoch, steps
        self._rows.load(epoch, steps)
        if not session.train_batches.cut_by_draws:
            self._make(epoch, steps)
        key = (len(steps), together, epoch < session.config.freeze_backbone)
        if key not in self._graphs:
            update = partial(self._update, len(steps), together)
            self._graphs[key] = _Replayed(update, self._keep, self._replays, self._checking, self._capturing)
        try:
            with self._replays.in_turn() if self._draws else nullcontext():
                seed_step(session, epoch, steps[0])
                self._graphs[key]()
        except CannotReplayError as err:
            why = str(err)
        else:
            self._rows.passed(steps)
            set_rates(session.optimizer, rates_of_step(session, epoch, steps[-1])[:-1])  # numbers, as in a checkpoint
            return
        # Only here has the error let go of the step that it came from, whose memory the next one needs.
        session.optimizer.zero_grad(set_to_none=True)
        self._graphs.clear()
        self._replays.let_go()
        session.give_up_graphs(why)
        self._plain.run(epoch, steps, together)

    def _update(self, count: int, together: int) -> None:
        """Take the next ``count`` rows, and update the weights."""
        epoch, steps = self._now
        for place in range(count):
            if place and not self._is_capturing:
                seed_step(self._session, epoch, steps[place])
            images, labels, *targets = self._batch(place)
            last = place == count - 1
            self._step.add_gradients(images, labels, targets[0] if targets else None, together, last=last)
            if last:
                self._step.update(self._rows.now(self._rows.rates))
            self._rows.counter.add_(1)

    def _batch(self, place: int) -> Iterable[Tensor]:
        if self._rows.drawn is None:
            return self._made[place]
        return self._session.train_batches.cut(self._rows.now(self._rows.drawn))

    def _make(self, epoch: int, steps: range) -> None:
        for place, step in enumerate(steps):
            batch = self._session.train_batches.batch(epoch, step)
            values = [batch.images, batch.labels] + ([] if batch.targets is None else [batch.targets])
            if place == len(self._made):
                self._made.append([value.clone() for value in values])
            for mine, new in zip(self._made[place], values, strict=True):
                mine.copy_(new)

    def _keep(self) -> Callable[[], None]:
        """Keep all that an update changes; return what puts it back."""
        session = self._session
        known = {parameter: dict(state) for parameter, state in session.optimizer.state.items()}
        states = [value for state in known.values() for value in state.values()]
        networks = [session.network] + ([] if session.average is None else [session.average.network])
        weights = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        held = [self._sums, self._rows.counter, *weights, *(value for value in states if isinstance(value, Tensor))]
        put_values_back = _keeping(held)

        def put_back() -> None:
            put_values_back()
            session.optimizer.state.clear()  # an update begins the momentum of what was frozen before
            session.optimizer.state.update(known)

        return put_back

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """Refuse random numbers of the host's within, and where a replay would need several seeds, any."""
        (epoch, steps), device = self._now, self._rows.counter.device
        before = _host_states()
        yield
        after = _torch_states(device)
        seed_step(self._session, epoch, steps[-1])
        seeded = _torch_states(device)
        self._draws = not all(map(torch.equal, after, seeded))
        if before != _host_states() or (device.type != "cpu" and not torch.equal(after[0], seeded[0])):
            raise CannotReplayError("the network draws random numbers on the host")
        if len(steps) > 1 and self._draws:
            raise CannotReplayError(
                "the network draws random numbers, which are seeded anew for each of the steps of an update"
            )

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """Tell the optimizers that ask whether they may be captured that they may: fused, their state is on the GPU."""
        groups = [group for group in self._session.optimizer.param_groups if "capturable" in group]
        self._is_capturing = True
        for group in groups:
            group["capturable"] = True
        try:
            yield
        finally:
            self._is_capturing = False
            for group in groups:
                group["capturable"] = False


class _Rows:
    """Draws and rates of an epoch's steps on the device, a row each, and the counter that picks one.

    Attributes:
        counter: Number of the next step, (1,) int64.
        drawn: Draws, (steps, B, k) int64; None if batches are no function of them.
        rates: Of :func:`csham.training.step.rates_of_step`, (steps, groups + 1) float32.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        device = session.accelerator.device
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.drawn: Tensor | None = None
        if session.train_batches.cut_by_draws:
            shape = (len(session.train_batches), *session.train_batches.draw(0, 0).shape)
            self.drawn = torch.zeros(shape, dtype=torch.int64, device=device)
        shape = (len(session.train_batches), len(session.optimizer.param_groups) + 1)
        self.rates = torch.zeros(shape, dtype=torch.float32, device=device)
        self._loaded = (-1, 0)  # an epoch, and the first of its rows that are there
        self._at = -1
        self._ahead: tuple[int, list[tuple[np.ndarray, list[float]]]] = (-1, [])

    def now(self, values: Tensor) -> Tensor:
        """Return the row that the counter picks: a function of tensors."""
        return values.index_select(0, self.counter)[0]

    def load(self, epoch: int, steps: range) -> None:
        """Have the rows of an epoch there from the first of these steps on, and the counter at it."""
        if self._loaded[0] != epoch or steps.start < self._loaded[1]:
            self._draw(epoch, len(self.rates))
            rows = self._ahead[1][steps.start :]
            if self.drawn is not None:
                self.drawn[steps.start :].copy_(torch.from_numpy(np.stack([drawn for drawn, _ in rows])))
            self.rates[steps.start :].copy_(torch.tensor([rates for _, rates in rows], dtype=torch.float64))
            self._loaded = (epoch, steps.start)
        if self._at != steps.start:
            self.counter.fill_(steps.start)

    def passed(self, steps: range) -> None:
        """Note that these steps were done; while the device is at them, the same ones of the next epoch are drawn."""
        self._at = steps.stop
        if self._loaded[0] + 1 < self._session.config.epochs:
            self._draw(self._loaded[0] + 1, steps.stop)

    def _draw(self, epoch: int, stop: int) -> None:
        if self._ahead[0] != epoch:
            self._ahead = (epoch, [])
        rows, session = self._ahead[1], self._session
        for step in range(len(rows), stop):
            drawn = np.empty(0) if self.drawn is None else session.train_batches.draw(epoch, step)
            rows.append((drawn, rates_of_step(session, epoch, step)))


def _host_states() -> tuple[Any, ...]:
    """Return the states of Python's and numpy's generators."""
    numpy: Any = np.random.get_state(legacy=True)
    return random.getstate(), numpy[0], numpy[1].tobytes(), *numpy[2:]


def _torch_states(device: torch.device) -> list[Tensor]:
    """Return the states of torch's generators, the host's first."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


class GraphedAnswers:
    """Answers of a run's network to parts of the data, replayed.

    Args:
        session: Session of the run.
        replays: Captures them.
    """

    def __init__(self, session: Session, replays: Replays) -> None:
        self._session, self._replays = session, replays
        self._parts: dict[tuple[str, bool], _Part] = {}

    def of(self, part: str, *, keep: bool) -> Iterator[Answered]:
        """Yield the rows, the number of real ones, and the answers of each batch of a part.

        Args:
            part: Its name.
            keep: As in :func:`csham.training.evaluation.predict`.
        """
        if (part, keep) not in self._parts:
            self._parts[part, keep] = _Part(self._session, part, keep, self._replays)
        return self._parts[part, keep].answered()


class _Part:
    """Answers to one part of the data, whose rows are on the device."""

    def __init__(self, session: Session, part: str, keep: bool, replays: Replays) -> None:
        self._session, self._keep, self._replays = session, keep, replays
        self._batches = session.evaluation_batches(part)
        self._host = list(self._batches.rows_in_order())
        device = session.accelerator.device
        self._rows = torch.from_numpy(np.stack([rows for rows, _ in self._host])).to(device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns: list[Tensor] = []
        self._replayed = _Replayed(self._answer, lambda: _keeping([self._counter]), replays)

    def answered(self) -> Iterator[Answered]:
        self._session.answering.eval()
        self._counter.zero_()
        for rows, count in self._host:
            yield rows, count, self._next()

    @torch.no_grad()
    def _next(self) -> list[Tensor]:
        why = None
        if self._session.config.graph:
            try:
                self._replayed()
            except CannotReplayError as err:
                why = str(err)
            else:
                return [column.clone() for column in self._columns]  # the next replay writes where these are
        if why is not None:
            self._replays.let_go()
            self._session.give_up_graphs(why)
        self._answer()
        return self._columns

    def _answer(self) -> None:
        rows = self._rows.index_select(0, self._counter)[0]
        images, labels = self._batches.shown(rows)
        self._columns = answers(self._session.answering(images), labels, keep=self._keep)
        self._counter.add_(1)
