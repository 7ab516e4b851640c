"""Cells of a study that take turns in one process, a step each, so that one GPU is shared without many processes.

What a step does follows from the run alone (:mod:`csham.training.loop`), so that a run ends with the same bits in
whatever company. What a process has one of is each run's own during its turn: torch's generators, whether it computes
deterministically, and on CUDA the stream.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from csham.errors import UserError
from csham.study.cell import CellRunner, NoRoomError
from csham.study.room import Room
from csham.training.interrupt import InterruptedRunError, StopRequest
from csham.training.machine import choose_device
from csham.training.progress import QuietProgress
from csham.training.streams import MOST_HOLDERS, own_stream
from csham.training.turns import Turns

__all__ = ["Ended", "Together"]


@dataclass(frozen=True)
class Ended:
    """End of a cell's time in this process.

    Attributes:
        key: Of the cell.
        record: The record; None where the cell is not over: it was stopped, had no room, or is another process's.
        stopped: True if a request stopped it.
        fatal: What no cell of the study can do anything about; empty if nothing is the matter.
    """

    key: str
    record: dict[str, Any] | None = None
    stopped: bool = False
    fatal: str = ""


class Together:
    """Cells under way in this process, and the turns they take.

    Args:
        runner: Runs them.
        device: Device, as it was asked for.
        most: Cells at once, as far as the device has streams for them; None finds out how many are worth it
            (:class:`csham.study.room.Room`).
        stop: Asks them all to stop.

    Attributes:
        room: Number of cells to take at once.
        turn_of: Key of the cell whose turn it is; empty between turns.
    """

    def __init__(self, runner: CellRunner, device: str, most: int | None, stop: StopRequest) -> None:
        self._device = _Device(choose_device(device))
        self.room = Room(None if most is None else min(most, self._device.most_runs), self._device)
        self._runner, self._stop = runner, stop
        self.turn_of = ""
        self._cells: dict[str, _Cell] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def begin(self, key: str, kind: str, attempts: int, progress: QuietProgress) -> None:
        """Take a cell in; its first turn starts it.

        Args:
            key: Of the cell.
            kind: Name of its network, alike for all cells of it.
            attempts: Number of its attempts that have failed.
            progress: Told what happens in it.
        """
        turns = self._runner.run_in_turns(key, attempts, progress, company=lambda: len(self._cells) > 1)
        self._cells[key] = _Cell(turns, self._device)
        self.room.begin(key, kind)

    def go_round(self) -> Iterator[Ended]:
        """Give every cell a turn; return those that ended."""
        for key in self.room.turns(list(self._cells)):
            ended = self._turn(key)
            if ended is not None:
                del self._cells[key]
                self.room.end(key)
                gc.collect()  # networks and graphs are in circles
                self._device.let_go()
                yield ended

    def _turn(self, key: str) -> Ended | None:
        cell = self._cells[key]
        try:
            try:
                self.turn_of = key
                with cell.has_turn():
                    self.room.worked(key, next(cell.turns))
            finally:
                self.turn_of = ""
        except StopIteration as end:
            return Ended(key, end.value)
        except InterruptedRunError:
            return Ended(key, stopped=True)
        except SystemExit:
            if self._stop.signum is None:
                raise
            return Ended(key, stopped=True)  # as it was starting, when there is nothing to save
        except NoRoomError:
            self.room.shrink()
            return Ended(key)
        except UserError as err:
            return Ended(key, fatal=str(err))
        return None


class _Cell:
    """A cell under way, with what is its own of what a process has one of."""

    def __init__(self, turns: Turns[dict[str, Any] | None], device: _Device) -> None:
        self.turns = turns
        self._device = device
        self._left = device.state()
        self._stream = device.new_stream()
        self._begun = False

    @contextmanager
    def has_turn(self) -> Iterator[None]:
        """Put back what this run left when its last turn ended, and keep it when this one ends."""
        self._device.put_back(self._left)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            yield
        if not self._begun and self._stream is not None:
            self._stream.synchronize()  # images that it put onto the GPU are the others' too
        self._begun = True
        self._left = self._device.state()


class _Device:
    """Device that runs share, as :class:`csham.study.room.Device` has it, and what torch has one of."""

    def __init__(self, name: str) -> None:
        self._name, self._kind = name, name.partition(":")[0]
        self._module: Any = None if self._kind == "cpu" else torch.get_device_module(self._kind)
        self._which = (name,) if self._kind == "cuda" else ()  # Metal has one device, and its functions take none
        self.most_runs = (
            MOST_HOLDERS // 2 if self._kind == "cuda" else sys.maxsize
        )  # one stream to run on, one to capture

    def synchronize(self) -> None:
        if self._module is not None:
            self._module.synchronize(*self._which)

    def held(self) -> float:
        return float(torch.cuda.memory_reserved(self._name)) if self._kind == "cuda" else 0.0

    def free(self) -> float:
        return float(torch.cuda.mem_get_info(self._name)[0]) if self._kind == "cuda" else float("inf")

    def let_go(self) -> None:
        """Give memory back that nothing uses: what lies ready for one stream is of no use to another."""
        if self._module is not None:
            self._module.empty_cache()

    def new_stream(self) -> torch.cuda.Stream | None:
        return own_stream(self._name) if self._kind == "cuda" else None

    def state(self) -> _State:
        return _State(
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_rng_state(),
            None if self._module is None else self._module.get_rng_state(*self._which),
        )

    def put_back(self, state: _State) -> None:
        if state.deterministic != torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(state.deterministic)
        if state.benchmark != torch.backends.cudnn.benchmark:
            torch.backends.cudnn.benchmark = state.benchmark
        torch.set_rng_state(state.generator)
        if self._module is not None:
            self._module.set_rng_state(state.on_device, *self._which)


class _State(NamedTuple):
    """What torch has one of in a process, and runs change."""

    deterministic: bool
    benchmark: bool
    generator: Tensor
    on_device: Tensor | None
