"""Findings of a study, as the report and the command line read them: networks, comparisons, what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from csham.study.statistics import Difference, Interval

__all__ = [
    "AgainstControl",
    "ClassDifference",
    "Comparison",
    "FailedCell",
    "MissingCell",
    "NetworkRow",
    "Results",
    "Spread",
    "plain_values",
]


@dataclass(frozen=True)
class Spread:
    """One number of all seeds of a network.

    Attributes:
        n: Seeds that have it.
        mean: Over these.
        sd: Standard deviation (n - 1); None with one.
        min: Smallest.
        max: Largest.
        values: By seed.
    """

    n: int
    mean: float
    sd: float | None
    min: float
    max: float
    values: dict[Any, float]


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """Results of the runs of one network; percent, and None where no run says.

    Attributes:
        label: Of the network.
        backbone: Its backbone.
        attention: Its attention, or ``"none"``.
        plain: True if others are compared with it.
        instead_of: Label of the network whose training time it matches, if it is a budget control.
        n: Seeds that finished.
        top1: Last epoch's accuracy on the test part: the number reported.
        chosen_top1: Test accuracy of the epoch that the validation part chose.
        metrics: Last epoch's, of :func:`csham.training.metrics.of_study`; beside the others in :meth:`to_dict`.
        test_images: In the test part.
        test_se: Standard error of one ``top1`` from having measured it on so many images, in percentage points.
        params: Parameters.
        flops: Of one image.
        seconds: Of one training, on average.
        images_per_s: Of training, on average.
    """

    label: str
    backbone: str
    attention: str
    plain: bool
    instead_of: str | None
    n: int
    top1: Spread | None
    chosen_top1: Spread | None
    metrics: dict[str, Spread | None]
    test_images: int | None
    test_se: float | None
    params: int | None
    flops: int | None
    seconds: float | None
    images_per_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything under its name, each metric too."""
        return _flat(self, "metrics")


@dataclass(frozen=True, kw_only=True)
class AgainstControl:
    """A network against a plain one of the same training time; not corrected for being one of many.

    Attributes:
        label: Of the budget control.
        n: Seeds that both have.
        mean: Of the network minus the control, in percentage points; None without seeds.
        t_interval: Student-t 95% interval of it.
        control_mean: Gain of the control over the plain network, on its own seeds.
    """

    label: str
    n: int
    mean: float | None
    t_interval: Interval | None
    control_mean: float | None

    @property
    def at_least_as_good(self) -> bool:
        """True if the network cannot be said to beat the control; False where nothing is known."""
        return self.mean is not None and (self.t_interval is None or self.t_interval[0] <= 0)


@dataclass(frozen=True, kw_only=True)
class Comparison(Difference):
    """One network against the plain one: what :class:`~csham.study.statistics.Difference` says, and of which networks.

    Attributes:
        label: Of the network.
        name: The label without the backbone: what was added to it.
        backbone: Of the plain network.
        against: Label of the plain network; None if the study has none.
        instead_of: Label of the network whose training time this one matches, if it is a budget control.
        seeds: That both have.
        differences: Top-1 of the network minus that of the plain one, in percentage points, in the order of ``seeds``.
        controls: Against each budget control of this network.
        more: Those of :data:`csham.study.comparison_statistics.STATISTICS` that are computed from ``differences``;
            beside the others in JSON.
    """

    label: str
    name: str
    backbone: str
    against: str | None
    instead_of: str | None
    seeds: tuple[Any, ...]
    differences: tuple[float, ...]
    controls: tuple[AgainstControl, ...]
    more: dict[str, float | Interval | None] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """Return a statistic by its name."""
        return self.more[name] if name in self.more else getattr(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything under its name, each of ``more`` too."""
        return _flat(self, "more")


@dataclass(frozen=True)
class MissingCell:
    """A run that has neither finished nor failed yet."""

    label: str
    seed: int


@dataclass(frozen=True)
class FailedCell:
    """A run that failed.

    Attributes:
        label: Of the network.
        seed: Of the run.
        error: Type and message.
        attempts: Number of times it was tried.
        run: Its folder.
    """

    label: str
    seed: int
    error: str
    attempts: int
    run: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """Findings of a study, so far.

    Attributes:
        networks: A row each, in the study's order.
        comparisons: One for each network that is not plain, in the study's order.
        ranking: For each backbone the labels by mean paired difference, the plain network's being 0: the order of what
            was seen, which claims nothing. Networks without a pair are left out.
        missing: Runs still to come.
        failed: Runs that failed.
        warnings: Differences between the runs that there should not be.
        headline: One to three sentences.
        seeds: Of the study.
        worthwhile: In percentage points.
        ignored: Records of networks, seeds or settings that are not in the study.
        runs: The finished records, by label and seed.
    """

    networks: list[NetworkRow]
    comparisons: list[Comparison]
    ranking: dict[str, list[str]]
    missing: list[MissingCell]
    failed: list[FailedCell]
    warnings: list[str]
    headline: str
    seeds: tuple[int, ...]
    worthwhile: float
    ignored: int
    runs: dict[tuple[str, int], Mapping[str, Any]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the records as JSON's values; seeds that are keys become text."""
        rows = {name: [row.to_dict() for row in vars(self)[name]] for name in ("networks", "comparisons")}
        shown = vars(self) | rows
        found: dict[str, Any] = plain_values({name: value for name, value in shown.items() if name != "runs"})
        return found


@dataclass(frozen=True)
class ClassDifference:
    """Accuracy of one class with a network, against the plain one.

    Attributes:
        name: Of the class.
        n: Seeds that both have.
        plain_recall: Percent of its test images that the plain network names right, mean over seeds.
        recall: That of the network.
        mean: Mean paired difference, in percentage points.
        sd: Standard deviation of the differences; None with fewer than two.
        images: In the test part; the mean where seeds split differently.
    """

    name: str
    n: int
    plain_recall: float
    recall: float
    mean: float
    sd: float | None
    images: float


def _flat(found: Any, within: str) -> dict[str, Any]:
    """Return the fields of a dataclass, and what one of them holds beside them."""
    flat: dict[str, Any] = {}
    for name, value in vars(found).items():
        flat |= value if name == within else {name: value}
    return flat


def plain_values(value: Any) -> Any:
    """Return dataclasses, tuples and numbered keys as what JSON has for them."""
    if hasattr(value, "__dataclass_fields__"):
        return plain_values(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    return [plain_values(entry) for entry in value] if isinstance(value, list | tuple) else value
