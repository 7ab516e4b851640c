"""How many runs a process trains at once: as many as its memory holds and as it gains by, found by trying.

What runs do is counted in units of what each would do alone in the same time, so that networks of different cost can be
added: one run alone does 1, and where two do less than 5% more together than one did, two are too many. For that, each
network is trained alone for a few seconds when its first run begins, while the others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Device", "Room"]

GAIN = 1.05
"""Least factor on what is done together for which another run is worth it."""

_SECONDS_TO_WARM_UP, _SECONDS_ALONE, _SECONDS_TOGETHER = 1.0, 2.0, 5.0
_FEWEST_STEPS = 5  # of a measurement
_MARGIN = 1.25  # on the memory that a run was seen to need


class Device(Protocol):
    """Device that runs share."""

    def synchronize(self) -> None:
        """Wait until all that was asked of it is done."""

    def held(self) -> float:
        """Return the bytes of it that this process holds."""

    def free(self) -> float:
        """Return the bytes of it that nobody holds."""


@dataclass
class _Measurement:
    """Work done since a moment.

    Attributes:
        since: The moment.
        done: Work of each run.
        steps: Of all together.
    """

    since: float
    done: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, name: str, work: float) -> None:
        self.done[name] = self.done.get(name, 0.0) + work
        self.steps += 1


class Room:
    """Number of runs that a process takes at once, and whose turn it is.

    Args:
        most: The number; None finds it.
        device: Device that the runs share.
        clock: Tells the seconds.

    Attributes:
        runs: The number, as far as it is known now.
    """

    def __init__(self, most: int | None, device: Device, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs = 1 if most is None else most
        self._found = most is not None
        self._device, self._clock = device, clock
        self._kinds: dict[str, str] = {}
        self._alone: dict[str, float] = {}  # work in a second, by kind
        self._needs: dict[str, float] = {}  # bytes, by kind
        self._best = 1.0
        self._tried = ""  # the run that is measured alone
        self._held = 0.0  # before it began
        self._starting: set[str] = set()
        self._warm = False
        self._measured = _Measurement(clock())

    def begin(self, name: str, kind: str) -> None:
        """Tell that a run begins; those of one kind are of one network."""
        self._kinds[name] = kind
        self._starting.add(name)
        self._begin_anew()

    def end(self, name: str) -> None:
        """Tell that a run is over, however it ended."""
        self._kinds.pop(name)
        self._starting.discard(name)
        if self._tried == name:
            self._tried = ""
        self._begin_anew()

    def turns(self, names: Sequence[str]) -> Sequence[str]:
        """Return which of these have the next turns: all, or the one that is measured alone."""
        if not self._found and not self._tried:
            self._tried = next((name for name in names if self._kinds[name] not in self._alone), "")
            if self._tried:
                self._held = self._device.held()
                self._begin_anew()
        return [self._tried] if self._tried else names

    def worked(self, name: str, work: float) -> None:
        """Tell what a run did in its turn."""
        if self._found:
            return
        self._measured.add(name, work)
        if name in self._starting:
            self._starting.remove(name)
            self._begin_anew()
        elif self._tried:
            self._measure_alone(name)
        elif len(self._kinds) == self.runs and all(kind in self._alone for kind in self._kinds.values()):
            self._measure_together()

    def shrink(self) -> None:
        """Tell that one of the runs under way finds no memory beside the others."""
        self.runs, self._found, self._tried = max(1, len(self._kinds) - 1), True, ""

    def _measure_alone(self, name: str) -> None:
        if self._is_measured(_SECONDS_ALONE):
            kind = self._kinds[name]
            self._alone[kind] = self._measured.done[name] / self._seconds()
            self._needs[kind] = max(self._device.held() - self._held, 0.0)
            self._tried = ""
            if self.runs == 1:
                self._grow()
            self._begin_anew()

    def _measure_together(self) -> None:
        if self._is_measured(_SECONDS_TOGETHER):
            done = sum(work / self._alone[self._kinds[name]] for name, work in self._measured.done.items())
            done /= self._seconds()
            if done >= GAIN * self._best:
                self._best = done
                self._grow()
            else:
                self.runs, self._found = self.runs - 1, True  # the last one goes on to its end
            self._begin_anew()

    def _grow(self) -> None:
        if self._device.free() >= _MARGIN * max(self._needs.values()):
            self.runs += 1
        else:
            self._found = True

    def _is_measured(self, seconds: float) -> bool:
        """Return True at the end of a measurement of so many seconds, which some to warm up precede."""
        measured = self._measured
        wanted = seconds if self._warm else _SECONDS_TO_WARM_UP
        if self._clock() - measured.since < wanted or measured.steps < _FEWEST_STEPS * len(measured.done):
            return False
        self._device.synchronize()  # or what was asked for would count as done
        if not self._warm:
            self._begin_anew(warm=True)
            return False
        return True

    def _seconds(self) -> float:
        return self._clock() - self._measured.since

    def _begin_anew(self, *, warm: bool = False) -> None:
        if not self._found:
            self._device.synchronize()
        self._measured, self._warm = _Measurement(self._clock()), warm
