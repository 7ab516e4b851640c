"""Many networks, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from csham.cost.flops import count_flops
from csham.cost.passes import PRECISIONS, unchanged
from csham.cost.result import Cost
from csham.cost.summary import summarise
from csham.cost.task import Entry, Task, Way, reason
from csham.cost.timing import orders
from csham.errors import UserError, unknown_name
from csham.memory import retain_memory
from csham.ops import choose

__all__ = ["Comparison", "Progress", "Settings"]

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 15


class Progress(Protocol):
    """Told how far a comparison is; :mod:`csham.training.progress` has three that show it."""

    def note(self, text: str) -> None:
        """Say one line."""

    def start(self, done: int, total: int) -> None:
        """Begin with ``total`` images."""

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        """Tell that ``done`` images have been passed through networks."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a measurement; see :func:`csham.cost`, whose arguments these are."""

    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...] | None = None
    precisions: tuple[str, ...] = ("fp32",)
    compiled: tuple[bool, ...] = (False,)
    device: torch.device | None = None
    channels_last: bool | None = None
    training: bool = True
    rounds: int | None = None
    seconds: float = 480.0
    seed: int = 0

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise unknown_name("precision", precision, PRECISIONS)
        numbers = {
            "input_size": self.input_size,
            "batch_sizes": self.batch_sizes or (1,),
            "rounds": (1 if self.rounds is None else self.rounds,),
        }
        for name, values in numbers.items():
            if not all(isinstance(value, int) and value >= 1 for value in values):
                raise UserError(f"cost: {name} must be whole numbers of at least 1, got {values!r}.")
        if len(self.input_size) != 3:
            raise UserError(f"cost: input_size must be (C, H, W), got {self.input_size!r}.")
        if not (self.precisions and self.compiled):
            raise UserError("cost: precisions and compiled must name at least one each.")


class Comparison:
    """Networks that are measured side by side; what has been measured can be asked for at any time.

    Args:
        networks: By name, each a network or a function that builds one.
        settings: Settings of the measurement.
        progress: Told what happens.
        baselines: The network that each one's ratios are against; the first where it is not named.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module | Callable[[], nn.Module]],
        settings: Settings,
        progress: Progress | None = None,
        baselines: Mapping[str, str] | None = None,
    ) -> None:
        if not networks:
            raise UserError("cost: no networks were given.")
        self.settings = settings
        self.device = settings.device or _device_of(networks)
        self.batch_sizes = settings.batch_sizes or ((8,) if self.device.type == "cpu" else (64,))
        self._progress = progress or _Silence()
        self._entries = [Entry(name, source) for name, source in networks.items()]
        by_name = {entry.name: entry for entry in self._entries}
        self._baselines = {name: by_name[other] for name, other in (baselines or {}).items()}
        self._started = time.monotonic()

    @property
    def where(self) -> str:
        """The device, a GPU with its name."""
        return (
            f"{self.device} ({torch.cuda.get_device_name(self.device)})"
            if self.device.type == "cuda"
            else str(self.device)
        )

    def run(self) -> None:
        """Build and warm up every network, then time all of them in rounds."""
        choose(self.device.type)  # builds the kernels where they are not, which would count as the first pass's time
        self._started = time.monotonic()
        if self.device.type == "cpu":
            retain_memory()
        with ExitStack() as stack, _as_in_training(compiled=True in self.settings.compiled):
            self._warm_up(stack)
            self._time()

    def costs(self) -> list[Cost]:
        """Return what has been measured so far."""
        return [
            summarise(entry, self._baseline(entry), way, batch_size, self.where, self.settings.input_size)
            for entry in self._entries
            for way in self._ways()
            for batch_size in self.batch_sizes
        ]

    def _baseline(self, entry: Entry) -> Entry:
        return self._baselines.get(entry.name, self._entries[0])

    def _warm_up(self, stack: ExitStack) -> None:
        if True in self.settings.compiled:
            self._progress.note("compiling every network for every shape first, which takes a minute or more for each")
        batches = self._batches()
        images = len(self._ways()) * (sum(batches) + sum(self.batch_sizes) * self.settings.training)
        clock = _Clock(self._progress, images * len(self._entries))
        for number, entry in enumerate(self._entries, start=1):
            where = f"warming up {entry.name}"
            clock.tell(where)
            try:
                network = self._build(entry, stack)
            except Exception as err:  # whatever a third-party network fails with becomes its row, and the others go on
                entry.failed = reason(err)
            else:
                for task in self._make_tasks(entry, network, batches):
                    task.attempt(task.warm_up)
                    clock.tell(where, len(task.images))
            clock.done = number * images

    def _build(self, entry: Entry, stack: ExitStack) -> nn.Module:
        network = entry.build().to(self.device)
        if self._channels_last():
            network = network.to(memory_format=torch.channels_last)
        stack.enter_context(unchanged(network))
        entry.params = sum(p.numel() for p in network.parameters())
        entry.flops = count_flops(network, self.settings.input_size)
        return network

    def _time(self) -> None:
        tasks = [(entry, task) for entry in self._entries for task in entry.tasks.values() if not task.failed]
        rounds = self._plan_rounds(sum(task.seconds * task.calls for _, task in tasks))
        clock = _Clock(self._progress, rounds * sum(len(task.images) * task.calls for _, task in tasks))
        for number, order in zip(range(1, rounds + 1), orders(tasks, self.settings.seed), strict=False):
            if self._is_over(number):
                return
            for entry, task in order:
                task.attempt(task.sample)
                clock.tell(f"round {number}/{rounds}, {entry.name}", len(task.images) * task.calls)

    def _plan_rounds(self, seconds_a_round: float) -> int:
        left = self.settings.seconds - (time.monotonic() - self._started)
        fitting = int(left / max(seconds_a_round, 1e-9))
        rounds = self.settings.rounds or min(max(fitting, _FEWEST_ROUNDS), _MOST_ROUNDS)
        about = f"about {rounds * seconds_a_round / 60:.1f} minutes"
        self._progress.note(
            f"timing {len(self._entries)} networks, {rounds} rounds of {seconds_a_round:.1f} s: {about}"
        )
        return rounds

    def _is_over(self, number: int) -> bool:
        """Return True if round ``number`` may not begin, the time being up."""
        late = time.monotonic() - self._started > self.settings.seconds
        return late and self.settings.rounds is None and number > _FEWEST_ROUNDS

    def _make_tasks(self, entry: Entry, network: nn.Module, batches: Mapping[int, Tensor]) -> Iterator[Task]:
        """Make the tasks of one network: forward passes at every batch size and 1, and training steps."""
        kinds = [("inference", size) for size in batches]
        kinds += [("training", size) for size in self.batch_sizes if self.settings.training]
        for way in self._ways():
            for kind, size in kinds:
                entry.tasks[way, kind, size] = task = Task(network, kind, way, batches[size])
                yield task

    def _batches(self) -> dict[int, Tensor]:
        generator = torch.Generator().manual_seed(self.settings.seed)
        found = {}
        for size in sorted({1, *self.batch_sizes}):
            images = torch.randn(size, *self.settings.input_size, generator=generator).to(self.device)
            found[size] = images.contiguous(memory_format=torch.channels_last) if self._channels_last() else images
        return found

    def _channels_last(self) -> bool:
        asked = self.settings.channels_last
        return self.device.type in ("cpu", "cuda") if asked is None else asked

    def _ways(self) -> list[Way]:
        return [(precision, compiled) for precision in self.settings.precisions for compiled in self.settings.compiled]


class _Clock:
    """Counts images passed through networks, and tells them with their rate."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.done = 0
        self._progress = progress
        self._started = time.monotonic()
        progress.start(0, total)

    def tell(self, where: str, images: int = 0) -> None:
        self.done += images
        seconds = time.monotonic() - self._started
        self._progress.step(where, self.done, None, self.done / seconds if seconds else 0.0)


class _Silence:
    def note(self, text: str) -> None:
        pass

    def start(self, done: int, total: int) -> None:
        pass

    def step(self, where: str, done: int, loss: float | None, images_per_s: float) -> None:
        pass


@contextmanager
def _as_in_training(*, compiled: bool) -> Iterator[None]:
    """Let cuDNN choose its algorithms as training does, and the compiler compile every network."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with _no_recompile_limit() if compiled else nullcontext():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def _no_recompile_limit() -> AbstractContextManager[None]:
    # Networks of one class share code objects where a graph breaks; past its limit torch would run them eagerly in
    # silence. Imported here because it takes seconds.
    import torch._dynamo.config  # noqa: PLC0415

    limit = 10_000
    return torch._dynamo.config.patch(recompile_limit=limit, accumulated_recompile_limit=limit)


def _device_of(networks: Mapping[str, nn.Module | Callable[[], nn.Module]]) -> torch.device:
    tensors = (p for network in networks.values() if isinstance(network, nn.Module) for p in network.parameters())
    weight = next(tensors, None)
    return torch.device("cpu") if weight is None else weight.device
