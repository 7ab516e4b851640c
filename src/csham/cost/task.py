"""One network and what is timed of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from csham.cost.flops import Flops
from csham.cost.passes import calls_for, forward_of, inference, peak_bytes, seconds_per_call, static_bytes, training
from csham.errors import UserError

__all__ = ["Entry", "Task", "Way", "reason"]

# Seconds of a pass past which watching its memory adds little to them, and one pass need not be made twice.
_LONG = 0.3

Way = tuple[str, bool]  # precision, compiled


@dataclass
class Entry:
    """One network of a comparison: where it comes from, and what is known of it.

    Attributes:
        name: Name in the comparison.
        source: The network, or a function that builds it.
        params: Its parameters.
        flops: Of one image.
        tasks: By way, kind (``"inference"`` or ``"training"``) and batch size.
        failed: Reason why it could not be built or run at all.
    """

    name: str
    source: nn.Module | Callable[[], nn.Module]
    params: int | None = None
    flops: Flops | None = None
    tasks: dict[tuple[Way, str, int], Task] = field(default_factory=dict)
    failed: str = ""

    def build(self) -> nn.Module:
        """Return the network."""
        return self.source if isinstance(self.source, nn.Module) else self.source()


class Task:
    """One pass of one network, to be timed now and then.

    Attributes:
        images: The batch.
        calls: Calls to a sample.
        seconds: Of a call, about; known after warming up.
        samples: Seconds of a call, one for each round.
        peak: Most bytes held, with weights and batch; None where the device keeps no record.
        failed: Reason why it is not timed any more.
    """

    def __init__(self, network: nn.Module, kind: str, way: Way, images: Tensor, *, fullgraph: bool = False) -> None:
        precision, self.compiled = way
        self.images = images
        self.calls = 1
        self.seconds = 0.0
        self.samples: list[float] = []
        self.peak: int | None = None
        self.failed = ""
        self._network = network
        self._kind = kind
        self._forward = forward_of(network, images.device, precision, self.compiled, fullgraph=fullgraph)

    def warm_up(self) -> None:
        """Compile, find the peak of memory, and learn how long a call takes."""
        device = self.images.device
        with self._ready() as run:
            if self.compiled or device.type == "cuda":
                run()  # compiling, and cuDNN's choice among algorithms, hold memory that later calls do not
            started = time.perf_counter()
            peak = peak_bytes(run, device)
            self.seconds = time.perf_counter() - started
            if self.seconds < _LONG:
                self.seconds = seconds_per_call(run, device)
        self.calls = calls_for(self.seconds)
        if peak is not None:
            held = static_bytes(self._network, momentum=self._kind == "training")
            self.peak = held + self.images.nbytes + peak

    def sample(self) -> None:
        """Time one block of calls."""
        with self._ready() as run:
            self.samples.append(seconds_per_call(run, self.images.device, self.calls))

    def attempt(self, action: Callable[[], Any]) -> None:
        """Do one of the above, unless the task has failed; remember why if it fails now."""
        if self.failed:
            return
        try:
            action()
        except Exception as err:  # whatever a third-party network fails with becomes its row, and the others go on
            self.failed = f"{self._kind} at batch size {len(self.images)}: {reason(err)}"
            self.samples.clear()

    @contextmanager
    def _ready(self) -> Iterator[Callable[[], Any]]:
        make_ready = {"inference": inference, "training": training}[self._kind]
        with make_ready(self._network, self._forward, self.images) as run:
            yield run


def reason(err: Exception) -> str:
    """Say in one line why something failed."""
    err = getattr(err, "inner_exception", err)  # what torch.compile's own exceptions wrap
    if isinstance(err, torch.OutOfMemoryError):
        return "out of memory; use a smaller batch size"
    if isinstance(err, UserError):
        return str(err)
    return f"{type(err).__name__}: {err}".splitlines()[0]
