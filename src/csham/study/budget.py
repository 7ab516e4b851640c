"""Budget controls: plain networks, widened or deepened to the training time that those with attention take."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from csham.backbones.lookup import deeper
from csham.backbones.scale import FAMILIES, family_of
from csham.errors import UserError
from csham.study.costs import make_comparison
from csham.study.grid import Network, Study
from csham.study.store import Store
from csham.training.config import timed_precision

if TYPE_CHECKING:
    from csham.cost.comparison import Progress

__all__ = ["Measure", "add_controls", "check_budget_control", "control_networks", "step_times"]

Measure = Callable[[Sequence[Network]], Mapping[str, float | str]]
"""Takes networks, the first of which is plain, and returns by label how long each one's training step takes against the
first's, or why it could not be measured; all of it from one interleaved run."""

TOLERANCE = 0.03
"""Training times of attentions within this fraction of each other count as the same, and share their controls."""

NEAR = 0.10
"""A control's training time is within this fraction of its network's: layers and channels are whole numbers."""

# Of the first run, from which the second one's candidates are interpolated: factors on the training time.
_LADDER = (1.15, 1.5, 2.2)
_MOST_RUNS = 2  # after the first
_MOST_STEPS = 40
_BEYOND = 9.0  # exponent that is off every axis: of times that hardly differ it may be any number


def step_times(
    *,
    num_classes: int,
    image_size: int,
    batch_size: int,
    precision: str = "fp32",
    device: str = "auto",
    seconds: float = 120.0,
    progress: Progress | None = None,
) -> Measure:
    """Return a function that measures training steps with :mod:`csham.cost`.

    Args:
        num_classes: Width of the logits.
        image_size: Side of the images, in pixels.
        batch_size: Images per step.
        precision: As a run's; see :func:`csham.training.config.timed_precision`.
        device: As in :class:`csham.training.config.TrainConfig`.
        seconds: Time after which no further round begins, of each run.
        progress: Told what happens.
    """

    def measure(networks: Sequence[Network]) -> dict[str, float | str]:
        comparison = make_comparison(
            {n.label: n for n in networks},
            num_classes=num_classes,
            image_size=image_size,
            device=device,
            progress=progress,
            batch_sizes=(batch_size,),
            precisions=(timed_precision(precision),),
            seconds=seconds,
        )
        comparison.run()
        _let_go_of_memory()
        return {cost.name: cost.ratios.get("train_step", cost.failed) for cost in comparison.costs()}

    return measure


def _let_go_of_memory() -> None:
    """Give a GPU's memory back, which this process keeps and those that train need."""
    import torch  # noqa: PLC0415

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def check_budget_control(networks: Iterable[Network]) -> None:
    """Refuse backbones that can be neither widened nor deepened; without importing PyTorch.

    Raises:
        UserError: Says which can be.
    """
    for backbone in dict.fromkeys(network.backbone for network in networks if network.instead_of is None):
        if family_of(backbone) is None:
            able = ", ".join(family.name for family in FAMILIES)
            raise UserError(
                f"--budget-control: {backbone} can be neither widened nor deepened here. Backbones whose names begin "
                f"with {able} can; leave out {backbone} or --budget-control."
            )


def control_networks(
    networks: Iterable[Network], measure: Measure, note: Callable[[str], Any] = lambda text: None
) -> list[Network]:
    """Find the plain networks that take as long to train as those with attention.

    For each distinct training time among the attentions of a backbone, one network of another width and one of another
    depth, where the backbone has both and one comes within ``NEAR`` of that time. Two runs of ``measure``, or three:
    the attentions beside a ladder of widths and depths, then beside the two candidates that what is known by then puts
    on either side of each of their times; once more where none of these is near enough.

    Args:
        networks: Those of a study; budget controls among them are left out.
        measure: Such as :func:`step_times` returns.
        note: Told, in a line each, what was found.

    Returns:
        The networks, with ``instead_of`` the label of the first network of that training time.

    Raises:
        UserError: A backbone can be neither widened nor deepened, or its plain network cannot be measured.
    """
    networks = [network for network in networks if network.instead_of is None]
    check_budget_control(networks)
    controls = []
    for backbone in dict.fromkeys(network.backbone for network in networks):
        attentions = [n for n in networks if n.backbone == backbone and not n.plain]
        if attentions:
            controls += _controls(Network(backbone), attentions, measure, note)
    return controls


def add_controls(store: Store, measure: Measure, note: Callable[[str], Any] = lambda text: None) -> Study:
    """Extend a study by budget controls of those of its networks for which none have been looked for.

    Args:
        store: The study's folder.
        measure: As for :func:`control_networks`.
        note: Likewise.

    Returns:
        The study as it is now.
    """
    study = store.study
    new = [n for n in study.networks if not n.plain and n.instead_of is None and n.label not in study.controlled]
    if not new:
        return study
    controls = control_networks(new, measure, note)
    with store.changing_study():
        study = store.study
        before = {network.backbone for network in study.networks if network.instead_of is not None}
        study = study.extended([network for network in controls if network.backbone not in before])
        study = replace(study, controlled=tuple(dict.fromkeys([*study.controlled, *(n.label for n in new)])))
        store.write_study(study)
    return study


@dataclass(frozen=True)
class _Pair:
    """A plain network and one with attention, as they were timed in one run."""

    network: Network
    time: float
    goal: float

    @property
    def off(self) -> float:
        return abs(math.log(self.time / self.goal))

    @property
    def near(self) -> bool:
        return self.off <= math.log1p(NEAR)


@dataclass(frozen=True)
class _Axis:
    """One way of growing a backbone: the networks, in rising order of what is changed."""

    name: str
    backbone: str
    start: float
    choices: tuple[float, ...]

    def network(self, choice: float) -> Network:
        return Network(f"{self.backbone}@{self.name}={choice:g}")

    def nearest(self, value: float) -> float:
        return min(self.choices, key=lambda choice: abs(choice - value))

    def around(self, value: float) -> list[float]:
        """Return the choices on either side of a value."""
        below = [choice for choice in self.choices if choice <= value][-1:]
        return below + [choice for choice in self.choices if choice > value][:1]


def _controls(
    plain: Network, attentions: Sequence[Network], measure: Measure, note: Callable[[str], Any]
) -> list[Network]:
    axes = _axes(plain.backbone)
    first = measure([plain, *attentions, *(axis.network(choice) for axis in axes for choice in _ladder(axis))])
    runs = [_measured(first)]
    if plain.label not in runs[0]:
        why = _why(first, plain)
        raise UserError(f"--budget-control: {plain.label} could not be measured{why}. csham profile says more.")
    targets = _targets(attentions, first, note)
    missed = wanted = [(target, axis) for target in targets for axis in axes]
    for _ in range(_MOST_RUNS):
        times = {label: time for run in runs for label, time in run.items()}  # good enough to interpolate
        candidates = [n for target, axis in missed for n in _candidates(axis, times, times[target.label])]
        if all(network.label in times for network in candidates):
            break
        beside = dict.fromkeys(target for target, _ in missed)
        runs.append(_measured(measure([plain, *beside, *dict.fromkeys(candidates)])))
        missed = [pair for pair in wanted if (best := _nearest(*pair, runs)) is None or not best.near]
    controls: dict[Network, Network] = {}
    for target, axis in wanted:
        best = _nearest(target, axis, runs)
        control = best.network if best is not None and best.near else None
        if control in controls:
            continue
        note(_found(target, axis, best))
        if control is not None:
            controls[control] = replace(control, instead_of=target.label)
    return list(controls.values())


def _measured(found: Mapping[str, float | str]) -> dict[str, float]:
    return {label: time for label, time in found.items() if not isinstance(time, str)}


def _why(found: Mapping[str, float | str], network: Network) -> str:
    """Return why a network was not measured, to be put behind that, where something is known."""
    reason = found.get(network.label)
    return f" ({reason})" if reason else ""


def _axes(backbone: str) -> list[_Axis]:
    base, _, scale = backbone.partition("@")
    family = family_of(base)
    assert family is not None
    if scale:
        raise UserError(f"--budget-control: {backbone} is scaled already; give {base}.")
    axes = []
    if "width" in family.settings:
        axes.append(_Axis("width", base, 1.0, tuple(1 + number / 50 for number in range(1, 151))))
    if "depth" in family.settings:
        depths = tuple(float(depth) for depth in deeper(base, _MOST_STEPS))
        axes.append(_Axis("depth", base, 2 * depths[0] - depths[1], depths))
    return axes


def _ladder(axis: _Axis) -> list[float]:
    """Return choices that take about as many times as long as _LADDER says."""
    # A layer's time grows with its depth's first power, and with some power of its width between the first and second.
    power = 1.5 if axis.name == "width" else 1.0
    return list(dict.fromkeys(axis.nearest(axis.start * factor ** (1 / power)) for factor in _LADDER))


def _targets(
    attentions: Sequence[Network], found: Mapping[str, float | str], note: Callable[[str], Any]
) -> list[Network]:
    """Return one network for each distinct training time above the plain network's."""
    targets: list[Network] = []
    times = _measured(found)
    for network in attentions:
        time = times.get(network.label)
        if time is None:
            note(f"{network.label} could not be measured and gets no budget control{_why(found, network)}")
        elif time < 1 + TOLERANCE:
            note(f"{network.label} takes {time:.2f} times the plain step: the plain network is its budget control")
        elif not any(abs(math.log(time / times[other.label])) <= math.log1p(TOLERANCE) for other in targets):
            targets.append(network)
    return targets


def _candidates(axis: _Axis, times: Mapping[str, float], goal: float) -> list[Network]:
    """Return the networks on either side of a time, as interpolated between those that were measured."""
    points = [(axis.start, 1.0)]
    for choice in axis.choices:
        time = times.get(axis.network(choice).label)
        if time is not None and time > points[-1][1]:  # noise may put a larger one below a smaller
            points.append((choice, time))
    if len(points) < 2:
        return []
    return [axis.network(choice) for choice in axis.around(_interpolated(points, goal))]


def _interpolated(points: Sequence[tuple[float, float]], goal: float) -> float:
    """Return the choice of a time, on straight lines between logarithms; the last line goes on."""
    pieces = list(pairwise(points))
    (low, before), (high, after) = next((piece for piece in pieces if goal <= piece[1][1]), pieces[-1])
    slope = math.log(high / low) / math.log(after / before)
    return low * math.exp(min(slope * math.log(goal / before), _BEYOND))


def _nearest(target: Network, axis: _Axis, runs: Sequence[Mapping[str, float]]) -> _Pair | None:
    """Return the network of an axis whose time is nearest to a target's of the same run."""
    pairs = [
        _Pair(network, run[network.label], run[target.label])
        for run in runs
        for network in map(axis.network, axis.choices)
        if target.label in run and network.label in run
    ]
    return min(pairs, key=lambda pair: pair.off, default=None)


def _found(target: Network, axis: _Axis, best: _Pair | None) -> str:
    """Say in a line what stands beside a network, or what comes nearest."""
    none = f"{target.label} gets no budget control of another {axis.name}"
    if best is None:
        return f"{none}: none could be measured"
    name, both = best.network.backbone, f"{best.time:.2f} and {best.goal:.2f} times the plain step"
    if best.near:
        return f"{name} stands beside {target.label}: {both}"
    return f"{none}: {name} comes nearest, with {both}, which is {best.time / best.goal:.2f} times as long"
