"""Costs of one network, or of many side by side, measured in turns."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from csham.cost.flops import count_flops
from csham.cost.passes import PRECISIONS, in_its_place, orders, without_gradients
from csham.cost.result import Cost, Spread
from csham.cost.task import Entry, Task, Way, reason
from csham.errors import UserError
from csham.memory import retain_memory
from csham.ops import choose
from csham.probing import likeness, unchanged
from csham.settings import check_known

__all__ = ["Comparison", "Progress", "Settings", "cost"]

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 15

_Tasks = Mapping[str, Task | None]


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
        check_known("precision", self.precisions, PRECISIONS)
        for name in ("input_size", "batch_sizes", "rounds", "seed"):
            object.__setattr__(self, name, _as_ints(getattr(self, name)))
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
        if not 0 <= self.seconds < math.inf:
            raise UserError(f"cost: seconds must be a number of 0 or more, got {self.seconds}.")
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**63):
            raise UserError(f"cost: seed must be a whole number from 0 to below 2**63, got {self.seed!r}.")


def cost(
    networks: nn.Module | Mapping[str, nn.Module | Callable[[], nn.Module]],
    *,
    image_size: int | None = None,
    input_size: tuple[int, int, int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    precisions: Sequence[str] = ("fp32",),
    compiled: Sequence[bool] = (False,),
    device: torch.device | str | None = None,
    channels_last: bool | None = None,
    training: bool = True,
    rounds: int | None = None,
    seconds: float = 480.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Cost | list[Cost]:
    """Measure parameters, FLOPs, latency, throughput, training step and peak memory.

    Everything is timed in turns: in each round every network is timed once at everything, in an order drawn for the
    round, so that whatever else the machine does meets all of them alike. What one network cannot do (its maps are too
    small, it runs out of memory, it does not compile) is said in its ``failed``, and the others go on. On the CPU
    :func:`csham.retain_memory` is called first, as training does.

    Args:
        networks: A network; or several by name, each a network or a function that builds one. They are moved to
            ``device`` and its memory format while they are measured, and are afterwards what and where they were. The
            images are of the type of their weights.
        image_size: Side of the images, in pixels, with three channels.
        input_size: (C, H, W), instead.
        batch_sizes: Images of a batch, by default 8 on a CPU and 64 elsewhere.
        precisions: ``"fp32"``, ``"bf16"`` (autocast) or both.
        compiled: False, True (torch.compile) or both.
        device: Device to run on; by default that of the first network.
        channels_last: True if channels are innermost in memory; by default so on CPU and CUDA, as in training.
        training: True if training steps are measured too.
        rounds: Exactly so many; by default 3 to 15, as ``seconds`` allow.
        seconds: After so many no further round begins, once there are three. Compiling counts.
        seed: Of the order and the images.
        progress: Told what happens.

    Returns:
        For one network its :class:`Cost`; for several one for each of them and each batch size, precision and way of
        running it, the networks in the order given, their ratios against the first.

    Raises:
        UserError: A setting that cannot work, or a single network that cannot be measured.

    Examples:
        >>> import csham
        >>> csham.cost(csham.create_model("resnet20", image_size=32), image_size=32).flops_matmul
        81753088
    """
    settings = Settings(
        input_size=_input_size(image_size, input_size),
        batch_sizes=None if batch_sizes is None else tuple(batch_sizes),
        precisions=tuple(precisions),
        compiled=tuple(compiled),
        device=None if device is None else torch.device(device),
        channels_last=channels_last,
        training=training,
        rounds=rounds,
        seconds=seconds,
        seed=seed,
    )
    alone = isinstance(networks, nn.Module)
    if alone and len(settings.precisions) * len(settings.compiled) * len(settings.batch_sizes or [0]) > 1:
        raise UserError("cost: one network gives one Cost. For many settings name it: cost({'name': network}, ...).")
    comparison = Comparison({"network": networks} if isinstance(networks, nn.Module) else networks, settings, progress)
    comparison.run()
    costs = comparison.costs()
    if not alone:
        return costs
    if costs[0].failed:
        raise UserError(f"cost: {costs[0].failed}")
    return costs[0]


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
        if self.device.type == "meta":
            raise UserError("cost: nothing is computed on the meta device. Name another: device='cpu'.")
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
            _summarise(entry, self._baseline(entry), way, batch_size, self.where, self.settings.input_size)
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
        network = entry.build()
        if network is entry.source:
            stack.enter_context(in_its_place(network))
        network = network.to(self.device)
        if self._channels_last():
            network = network.to(memory_format=torch.channels_last)
        stack.enter_context(unchanged(network))
        stack.enter_context(without_gradients(network))
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
        batches = {size: images.to(likeness(network).dtype) for size, images in batches.items()}
        kinds = [("inference", size) for size in batches]
        kinds += [("training", size) for size in self.batch_sizes if self.settings.training]
        for way in self._ways():
            for kind, size in kinds:
                entry.tasks[way, kind, size] = task = Task(network, kind, way, batches[size])
                yield task

    def _batches(self) -> dict[int, Tensor]:
        generator = torch.Generator().manual_seed(self.settings.seed)
        batches = {}
        for size in sorted({1, *self.batch_sizes}):
            images = torch.randn(size, *self.settings.input_size, generator=generator).to(self.device)
            batches[size] = images.contiguous(memory_format=torch.channels_last) if self._channels_last() else images
        return batches

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

    return torch._dynamo.config.patch(recompile_limit=sys.maxsize, accumulated_recompile_limit=sys.maxsize)


def _device_of(networks: Mapping[str, nn.Module | Callable[[], nn.Module]]) -> torch.device:
    tensors = (p for network in networks.values() if isinstance(network, nn.Module) for p in network.parameters())
    weight = next(tensors, None)
    return torch.device("cpu") if weight is None else weight.device


def _as_ints(given: Any) -> Any:
    """Return whole numbers of any type, NumPy's too, as Python's, and anything else as it is."""
    if isinstance(given, tuple):
        return tuple(map(_as_ints, given))
    try:
        return index(given)
    except TypeError:
        return given


def _input_size(image_size: int | None, input_size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if (image_size is None) == (input_size is None):
        raise UserError("cost: give image_size=pixels or input_size=(C, H, W), one of the two.")
    return input_size if input_size is not None else (3, int(image_size or 0), int(image_size or 0))


def _summarise(
    entry: Entry,
    first: Entry,
    way: Way,
    batch_size: int,
    device: str,
    input_size: tuple[int, int, int],
) -> Cost:
    """Make the row of one network at one way of running it.

    Args:
        entry: The network.
        first: The one that ratios are against.
        way: Precision, and whether compiled.
        batch_size: Of throughput, training and memory.
        device: Device it ran on.
        input_size: (C, H, W) of an image.
    """
    tasks, plain = _tasks(entry, way, batch_size), _tasks(first, way, batch_size)
    known, reference = _numbers(entry, tasks), _numbers(first, plain)
    params, before = known["params"], reference["params"]
    times = {name: task.samples if task else [] for name, task in tasks.items()}
    reasons = dict.fromkeys(task.failed for task in tasks.values() if task and task.failed)
    return Cost(
        name=entry.name,
        batch_size=batch_size,
        precision=way[0],
        compiled=way[1],
        device=device,
        input_size=input_size,
        params=entry.params,
        params_extra=None if params is None or before is None else int(params - before),
        flops=entry.flops.total if entry.flops else None,
        flops_matmul=entry.flops.matmul if entry.flops else None,
        flops_uncounted=entry.flops.uncounted if entry.flops else (),
        latency_ms=Spread.of([1000 * seconds for seconds in times["latency"]]),
        images_per_s=Spread.of([batch_size / seconds for seconds in times["inference"]]),
        train_step_ms=Spread.of([1000 * seconds for seconds in times["train_step"]]),
        peak_mib=known["peak"],
        train_peak_mib=known["train_peak"],
        ratios=_ratios(known, reference) | _time_ratios(tasks, plain),
        rounds=max(map(len, times.values())),
        failed=entry.failed or "; ".join(reasons),
    )


def _tasks(entry: Entry, way: Way, batch_size: int) -> _Tasks:
    return {
        "latency": entry.tasks.get((way, "inference", 1)),
        "inference": entry.tasks.get((way, "inference", batch_size)),
        "train_step": entry.tasks.get((way, "training", batch_size)),
    }


def _numbers(entry: Entry, tasks: _Tasks) -> dict[str, float | None]:
    return {
        "params": entry.params,
        "flops": entry.flops.total if entry.flops else None,
        "flops_matmul": entry.flops.matmul if entry.flops else None,
        "peak": _mib(tasks["inference"]),
        "train_peak": _mib(tasks["train_step"]),
    }


def _mib(task: Task | None) -> float | None:
    return None if task is None or task.peak is None else task.peak / 2**20


def _ratios(known: Mapping[str, float | None], reference: Mapping[str, float | None]) -> dict[str, float]:
    pairs = ((name, known[name], reference[name]) for name in known)
    return {name: mine / its for name, mine, its in pairs if mine is not None and its}


def _time_ratios(tasks: _Tasks, plain: _Tasks) -> dict[str, float]:
    """Compare within each round, where both met the same state of the machine."""
    ratios = {}
    for name, task in tasks.items():
        against = plain[name]
        if task and against:
            # An interrupted round has timed some tasks and not others.
            spread = Spread.of([a / b for a, b in zip(task.samples, against.samples, strict=False)])
            if spread is not None:
                ratios[name] = spread.median
    return ratios
