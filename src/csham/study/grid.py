"""Plan of a study: the networks and seeds it pairs, the settings that all its runs share, and the cells these make.

Nothing here imports PyTorch. :mod:`csham.study.study_file` keeps a study as ``study.yaml``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from csham.attach.names import STRATEGIES, check_strategy
from csham.backbones.spec import CONNECTION_FIELDS, NETWORK_FIELDS, NetworkSpec
from csham.errors import UserError
from csham.layers.names import ATTENTIONS
from csham.layers.own import is_own_attention
from csham.own_code import unnamed_code
from csham.settings import Mark, check_choice, check_known, marked, names_of
from csham.training.config import MACHINE_SETTINGS, SOURCE_SETTINGS, TrainConfig

__all__ = [
    "MACHINE_FIELDS",
    "MOST_SEEDS",
    "SHARED_FIELDS",
    "WORTHWHILE",
    "Cell",
    "Data",
    "Network",
    "Study",
    "cell_key",
    "differing_setting",
    "expand_networks",
    "read_seeds",
    "shared_settings",
    "with_plain",
]

# The runs of a study share their precision.
MACHINE_FIELDS = tuple(name for name in MACHINE_SETTINGS if name != "precision")
"""Settings that say where and how fast a run works: they may differ from call to call of one study."""

SHARED_FIELDS = tuple(
    name for name in names_of(TrainConfig) if name not in {"data", "seed", *NETWORK_FIELDS, *MACHINE_FIELDS}
)
"""Settings that all runs of a study share."""


def shared_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that all runs of a study share, by name."""
    return {name: getattr(config, name) for name in SHARED_FIELDS}


MOST_SEEDS = 1000
"""Seeds that a study may have; more are not worth counting."""

WORTHWHILE = 0.5
"""Smallest difference worth having where nobody says another, in percent of top-1."""


@dataclass(frozen=True)
class Network(NetworkSpec):
    """One network of a study; what a plain network cannot have is put back to its default.

    Attributes:
        instead_of: Label of the network whose training time this one, a budget control, is made to match.
    """

    instead_of: str | None = None

    def __post_init__(self) -> None:
        if self.instead_of is not None and not isinstance(self.instead_of, str):
            raise UserError(f"instead_of must be the label of a network, got {self.instead_of!r}.")
        super().__post_init__()
        if self.attention == "none":
            plain = NetworkSpec(self.backbone)
            for name in (*CONNECTION_FIELDS, "attention_sha256"):  # its backbone's code stays
                object.__setattr__(self, name, getattr(plain, name))
        elif self.instead_of is not None:
            raise UserError(f"a budget control has no attention, and {self.label} has.")

    @property
    def plain(self) -> bool:
        """True if this is what the others of its backbone are compared with."""
        return self.attention == "none" and self.instead_of is None

    @property
    def label(self) -> str:
        """A name for people, different for different networks, such as ``resnet20 + csham (transfer)``."""
        if self.instead_of is not None:
            return f"{self.backbone} (instead of {self.instead_of})"
        return super().label

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Network:
        """Read a network from a mapping, such as an entry of ``networks:`` in YAML; unknown keys are refused."""
        if not isinstance(values, Mapping):
            raise UserError(f"a network is a mapping such as {{backbone: resnet20, attention: se}}, got {values!r}.")
        check_known("key of a network", values, names_of(cls))
        if "backbone" not in values:
            raise UserError(f"a network has no backbone: {dict(values)!r}.")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Data:
    """The images of a study.

    Attributes:
        source: Name of the dataset or path of the folder, as the user gave it.
        classes: Number of classes.
        images: Number of images, of all parts.
        image_size: Side in pixels.
        fingerprint: Of labels, parts and content.
    """

    source: str
    classes: int
    images: int
    image_size: int
    fingerprint: str


@dataclass(frozen=True)
class Cell:
    """One run of a study: one network with one seed.

    Attributes:
        network: Network that is trained.
        config: Every setting of the run; those of :data:`MACHINE_FIELDS` are defaults, which a call may change.
        key: Of the settings that change the result, and of the data: 16 hexadecimal digits.
    """

    network: Network
    config: TrainConfig
    key: str

    @property
    def seed(self) -> int:
        """The seed."""
        return self.config.seed

    @property
    def label(self) -> str:
        """Name of the cell for people."""
        return f"{self.network.label}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of the run folder."""
        words = re.sub(r"[^A-Za-z0-9@=.+]+", "-", self.network.label.replace(" + ", "-")).strip("-")
        # Patterns of modules differ in characters that names of files lack.
        digest = f"-{self.key[:8]}" if self.network.points is not None or len(words) > 100 else ""
        return f"{words[:100]}{digest}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """Study, as ``study.yaml`` holds it.

    Attributes:
        data: The images.
        settings: Of :data:`SHARED_FIELDS`, each resolved.
        networks: In the order of the tables.
        seeds: Each is trained with every network.
        worthwhile: Smallest difference worth having, in percent of top-1.
        command: The line that made it; one joined by ``&&`` for each that extended it.
        weights_sha256: Of the file of first weights, if there is one.
        controlled: Labels of the networks for which budget controls have been looked for.
    """

    data: Data
    settings: Mapping[str, Any]
    networks: tuple[Network, ...]
    seeds: tuple[int, ...]
    worthwhile: float = WORTHWHILE
    command: str = ""
    weights_sha256: str | None = None
    controlled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        value = self.worthwhile
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 100:
            raise UserError(f"--worthwhile is a difference of top-1 in percent, from 0 to below 100, got {value!r}.")
        object.__setattr__(self, "worthwhile", float(value))

    def config(self, network: Network, seed: int) -> TrainConfig:
        """Put the settings of one run together."""
        return TrainConfig(data=self.data.source, **self.settings, **network.network_settings, seed=seed)

    @cached_property
    def _cells(self) -> tuple[Cell, ...]:
        ordered = [n for n in self.networks if n.plain] + [n for n in self.networks if not n.plain]
        return tuple(self.cell(network, seed) for seed in self.seeds for network in ordered)

    def cells(self) -> list[Cell]:
        """Return every run, all networks of the first seed first and plain ones before others."""
        return list(self._cells)

    def part(self, shard: tuple[int, int]) -> list[Cell]:
        """Return the runs of a shard: number i of n, counted from 1."""
        number, count = shard
        return list(self._cells[number - 1 :: count])

    def cell(self, network: Network, seed: int) -> Cell:
        """Return the run of a network with a seed, of the study or not."""
        config = self.config(network, seed)
        key = cell_key(config, self.data.fingerprint, self.weights_sha256, network.instead_of)
        return Cell(network, config, key)

    def extended(self, networks: Iterable[Network] = (), seeds: Iterable[int] = ()) -> Study:
        """Return the study with these networks and seeds too, behind what it has."""
        return replace(
            self,
            networks=tuple(dict.fromkeys([*self.networks, *networks])),
            seeds=tuple(dict.fromkeys([*self.seeds, *seeds])),
        )

    def changed(self, settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return name, old and new value of the shared settings among these that differ from the study's."""
        ours = TrainConfig(data="-", **self.settings)
        theirs = replace(ours, **{name: settings[name] for name in SHARED_FIELDS if name in settings})
        new = shared_settings(theirs)
        return [(name, old, new[name]) for name, old in shared_settings(ours).items() if old != new[name]]


# The recipe's name says where settings came from, which are in the key themselves; data and weights enter by content.
_NOT_KEYED = frozenset({*SOURCE_SETTINGS, *MACHINE_FIELDS})

# These enter a key only where they are not at their default, so that the keys of older studies stay what they were.
_LATER = {field.name: field.default for field in fields(TrainConfig) if field.name in marked(TrainConfig, Mark.LATER)}


def cell_key(
    config: TrainConfig, fingerprint: str, weights_sha256: str | None = None, instead_of: str | None = None
) -> str:
    """Return 16 hexadecimal digits that stand for everything that a run's result depends on, but for the machine.

    Args:
        config: The settings, resolved.
        fingerprint: Of the data.
        weights_sha256: Of the file of first weights.
        instead_of: Of a budget control; without it, those of two networks that come out alike have one key.
    """
    left_out = {name for name, default in _LATER.items() if getattr(config, name) == default} | _NOT_KEYED
    content = {name: value for name, value in config.to_dict().items() if name not in left_out}
    content |= {"data": fingerprint, "weights": weights_sha256}
    if instead_of is not None:
        content["instead_of"] = instead_of
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def differing_setting(theirs: Mapping[str, Any], ours: TrainConfig) -> str | None:
    """Name the first setting that makes a run another than a cell's, with both values."""
    for name, value in ours.to_dict().items():
        other = theirs.get(name, value)
        if other != value and cell_key(replace(ours, **{name: other}), "") != cell_key(ours, ""):
            return f"{name} is {other!r} there, and {value!r} in the study"
    return None


def expand_networks(
    backbones: Sequence[str],
    attentions: Sequence[str],
    strategies: Sequence[str] = (),
    **settings: Any,
) -> list[Network]:
    """Combine names into networks.

    Args:
        backbones: Names of backbones.
        attentions: Names of attentions, ``"none"``, ``"all"``, or ``"attention:strategy"``; an attention of the user's
            own, ``"my_module:MyGate"``, is known by then (:mod:`csham.layers.own`).
        strategies: For the attentions without one of their own that have the parts for it; an attention that has the
            parts for none of them is connected as its authors do.
        **settings: Other fields of :class:`Network`, for all with attention; ``period`` for those that transfer.

    Raises:
        UserError: An unknown name, or a strategy that the attention named with it has no parts for.
    """
    check_known("strategy", strategies, STRATEGIES)
    pairs = [pair for words in attentions for pair in _pairs(words, strategies)]
    period = settings.pop("period", None)
    if period is not None and not any(strategy == "transfer" for _, strategy in pairs):
        raise UserError("--period is a setting of strategy 'transfer', which no network here has. Leave it out.")
    networks = [
        Network(backbone, attention, strategy, period if strategy == "transfer" else None, **settings)
        for backbone in backbones
        for attention, strategy in pairs
    ]
    for network in networks:
        network.check_names()
    return list(dict.fromkeys(networks))


def _pairs(words: str, strategies: Sequence[str]) -> list[tuple[str, str]]:
    """Give an attention its strategies."""
    attention, _, own = words.rpartition(":") if words not in ATTENTIONS and ":" in words else (words, "", "")
    if words == "all":
        return [pair for name in ATTENTIONS if name != "none" for pair in _pairs(name, strategies)]
    if attention == "none":
        if own:
            raise UserError(f"{words!r}: the plain network has no strategy. Write none.")
        return [("none", "sequential")]
    if is_own_attention(words) and (code := ":".join(words.split(":")[:2])) not in ATTENTIONS:
        raise unnamed_code("attention", code)
    check_choice("attention", attention, ["none", *ATTENTIONS, "all"])
    if attention != words:
        check_strategy(attention, own)
        return [(attention, own)]
    fitting = [s for s in strategies if ATTENTIONS[attention].two_part or not STRATEGIES[s].needs_parts]
    return [(attention, strategy) for strategy in fitting or ["sequential"]]


def with_plain(networks: Iterable[Network]) -> tuple[list[Network], list[str]]:
    """Put the plain network of every backbone in front of the others of it.

    Returns:
        The networks, and the backbones whose plain network was missing.
    """
    networks = list(dict.fromkeys(networks))
    given = {network for network in networks if network.plain}
    # A budget control is measured against the plain network of the backbone that it widens.
    plain = {
        n: Network(n.backbone.partition("@")[0] if n.instead_of else n.backbone, backbone_sha256=n.backbone_sha256)
        for n in networks
    }
    together = []
    for one in dict.fromkeys(plain.values()):
        together += [one]
        together += [n for n in networks if not n.plain and one.base in (n.base, n.base.partition("@")[0])]
    added = [one.base for one in dict.fromkeys(plain.values()) if one not in given]
    return list(dict.fromkeys(together)), added


def read_seeds(given: object) -> tuple[int, ...]:
    """Read seeds: a number N means 0 to N - 1, a list or ``"0,3,5"`` these.

    Raises:
        UserError: It is neither, or a seed is out of range.
    """
    wrong = UserError(f"--seeds takes how many, such as 5, or which, such as 0,3,5; got {given!r}.")
    if isinstance(given, str):
        words = [word.strip() for word in given.split(",") if word.strip()]
        if not words or not all(re.fullmatch(r"[0-9]{1,19}", word) for word in words):
            raise wrong
        numbers: object = [int(word) for word in words] if "," in given else int(words[0])
    else:
        numbers = given
    if isinstance(numbers, int) and not isinstance(numbers, bool):
        numbers = list(range(min(numbers, MOST_SEEDS + 1)))
    if not isinstance(numbers, list | tuple) or not numbers:
        raise wrong
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in numbers):
        raise wrong
    seeds = tuple(dict.fromkeys(numbers))
    if len(seeds) > MOST_SEEDS:
        raise UserError(f"--seeds: a study takes at most {MOST_SEEDS} seeds.")
    return seeds
