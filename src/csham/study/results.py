"""From the records of a study to its table: every network's numbers, and each one's paired difference to the plain one.

The number reported is the last epoch's top-1 on the test part, in percent. A network is compared with the plain network
of its backbone, a budget control with the plain network of the backbone that it is a larger version of; by seed, and
only by seeds that both have. Holm's correction goes over all comparisons of the study, of all backbones and with
the budget controls: each ends in a verdict that may be quoted. Controls whose gain is plain cost the others
nothing, because Holm's method counts only what has not been rejected.
"""

from __future__ import annotations

import statistics as stdlib_statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from csham.backbones.spec import NETWORK_FIELDS
from csham.errors import UserError, unknown_name
from csham.study.comparison_statistics import computed
from csham.study.findings import (
    AgainstControl,
    ClassDifference,
    Comparison,
    FailedCell,
    MissingCell,
    NetworkRow,
    Results,
    Spread,
)
from csham.study.grid import Network, Study
from csham.study.headline import headline
from csham.study.machines import machine_notes
from csham.study.record import is_number
from csham.study.statistics import STORED, binomial_se, compare, judge
from csham.training.config import BEFORE, MACHINE_SETTINGS, SOURCE_SETTINGS
from csham.training.metrics import of_study
from csham.words import counted

__all__ = ["assess", "per_class_difference", "spread"]

Record = Mapping[str, Any]

# What a cell chooses, and what only says where and how fast it runs or where its input lies.
_NOT_SHARED = frozenset({*NETWORK_FIELDS, "seed", *MACHINE_SETTINGS, *SOURCE_SETTINGS})

# These change seconds, and the result only in its last bits.
_SPEED = frozenset({"processor", "number of threads", "number of processes", "sharing of a process", "torch.compile"})


def assess(
    study: Study, records: Iterable[Record], *, keys: Collection[str] | None = None, repeats: Iterable[Record] = ()
) -> Results:
    """Make a study's table out of its records, whatever is there by now.

    Args:
        study: Its networks, seeds and ``worthwhile``.
        records: Of the store; of several with one key the last counts.
        keys: Of the study's cells. A record with another key is of other settings and ignored. None takes all.
        repeats: Second runs of cells on other machines, which count only for what the machine does.

    Raises:
        UserError: A record has no finite top-1, or one network and seed has records of different settings.
    """
    latest = {record["key"]: record for record in records}
    cells = _by_cell(study, [record for key, record in latest.items() if keys is None or key in keys])
    runs = {cell: _checked(record) for cell, record in cells.items() if record["status"] == "done"}
    tops = {cell: float(record["result"]["top1"]) for cell, record in runs.items()}
    against = {network.label: _plain_of(study, network) for network in study.networks if not network.plain}
    rows = [_row(network, study.seeds, runs) for network in study.networks]
    comparisons = _comparisons(study, tops, against)
    wanted = [(network.label, seed) for seed in study.seeds for network in study.networks]
    failed = [_failed(*cell, cells[cell]) for cell in wanted if cell in cells and cell not in runs]
    missing = [MissingCell(*cell) for cell in wanted if cell not in cells]
    return Results(
        networks=rows,
        comparisons=comparisons,
        ranking=_ranking(study, comparisons),
        missing=missing,
        failed=failed,
        warnings=[
            *machine_notes(
                runs.values(),
                [record for record in repeats if keys is None or record["key"] in keys],
                [network.label for network in study.networks if network.plain],
            ),
            *_differing(runs, against),
        ],
        headline=headline(
            comparisons,
            study.worthwhile,
            len(missing),
            len(failed),
            len(wanted),
            begun={row.label for row in rows if row.n},
        ),
        seeds=tuple(study.seeds),
        worthwhile=study.worthwhile,
        ignored=len(latest) - len(cells),
        runs=runs,
    )


def per_class_difference(results: Results, label: str) -> list[ClassDifference]:
    """Compare a network with the plain one class by class, over the seeds that both have.

    Classes without test images in any of these seeds are left out, and so are seeds whose record has no counts.

    Raises:
        UserError: There is no comparison of that label, or the runs' classes differ.
    """
    comparison = next((c for c in results.comparisons if c.label == label), None)
    if comparison is None:
        raise unknown_name("network", label, [c.label for c in results.comparisons])
    pairs = [(results.runs[label, seed], results.runs[str(comparison.against), seed]) for seed in comparison.seeds]
    pairs = [pair for pair in pairs if all(record.get("per_class") for record in pair)]
    if not pairs:
        return []
    classes = list(pairs[0][0]["classes"])
    if any(list(record["classes"]) != classes for pair in pairs for record in pair):
        raise UserError(f"the runs of {label} and {comparison.against} were measured on different classes.")
    found = (_class_difference(name, i, pairs) for i, name in enumerate(classes))
    return [difference for difference in found if difference is not None]


def _by_cell(study: Study, records: Iterable[Record]) -> dict[tuple[str, int], Record]:
    """Sort the records of the study's networks and seeds by these; others are left out."""
    labels, seeds = {network.label for network in study.networks}, set(study.seeds)
    cells: dict[tuple[str, int], Record] = {}
    for record in records:
        cell = (record["label"], record["seed"])
        if cell[0] not in labels or cell[1] not in seeds:
            continue
        if cell in cells:
            raise UserError(
                f"the study holds two records of {cell[0]}, seed {cell[1]}, made with different settings (keys "
                f"{cells[cell]['key']} and {record['key']}). Give the keys of the cells that count, or start another "
                "study for the other settings."
            )
        cells[cell] = record
    return cells


def _checked(record: Record) -> Record:
    top1 = (record.get("result") or {}).get("top1")
    if not is_number(top1):
        raise UserError(
            f"the record of {record['label']}, seed {record['seed']} (key {record['key']}) has top1 {top1!r}, which is "
            "no number. Remove its line from records.jsonl, and the study will run it again."
        )
    return record


def _plain_of(study: Study, network: Network) -> str | None:
    """Return the label of the plain network that another one is compared with."""
    base = _base(study, network)
    return next((other.label for other in study.networks if other.plain and other.base == base), None)


def _base(study: Study, network: Network) -> str:
    """Return the backbone that a network adds to; a budget control is a larger version of another network's."""
    if network.instead_of is None:
        return network.base
    matched = next((other for other in study.networks if other.label == network.instead_of), None)
    return matched.base if matched else network.base.partition("@")[0]


def _comparisons(
    study: Study, tops: Mapping[tuple[str, int], float], against: Mapping[str, str | None]
) -> list[Comparison]:
    networks = [network for network in study.networks if not network.plain]
    paired = [_paired(study.seeds, tops, network.label, against[network.label]) for network in networks]
    differences = [list(pairs.values()) for pairs in paired]
    judged = compare(differences, study.worthwhile, rounded=STORED)
    means = {
        network.label: sum(values) / len(values)
        for network, values in zip(networks, differences, strict=True)
        if values
    }
    return [
        Comparison(
            **vars(found),
            label=network.label,
            name=network.label.removeprefix(f"{network.base} + "),
            backbone=_base(study, network),
            against=against[network.label],
            instead_of=network.instead_of,
            seeds=tuple(pairs),
            differences=tuple(pairs.values()),
            controls=_against_controls(study, tops, network.label, means),
            more=computed(tuple(pairs.values())),
        )
        for network, pairs, found in zip(networks, paired, judged, strict=True)
    ]


def _paired(
    seeds: Iterable[int], tops: Mapping[tuple[str, int], float], label: str, other: str | None
) -> dict[int, float]:
    """Return the differences of two networks by seed, where both have one."""
    if other is None:
        return {}
    # What lies beyond comes from subtracting.
    return {
        seed: round(tops[label, seed] - tops[other, seed], 6)
        for seed in seeds
        if (label, seed) in tops and (other, seed) in tops
    }


def _against_controls(
    study: Study, tops: Mapping[tuple[str, int], float], label: str, means: Mapping[str, float]
) -> tuple[AgainstControl, ...]:
    found = []
    for control in study.networks:
        if control.instead_of == label:
            values = list(_paired(study.seeds, tops, label, control.label).values())
            judgement = judge([values], study.worthwhile, STORED)[0]
            found.append(
                AgainstControl(
                    label=control.label,
                    n=judgement.n,
                    mean=judgement.mean,
                    t_interval=judgement.t_interval,
                    control_mean=means.get(control.label),
                )
            )
    return tuple(found)


def _ranking(study: Study, comparisons: Sequence[Comparison]) -> dict[str, list[str]]:
    ranking = {}
    for plain in (network for network in study.networks if network.plain):
        means = {c.label: c.mean for c in comparisons if c.against == plain.label and c.mean is not None}
        ranking[plain.base] = sorted([plain.label, *means], key=lambda label: -means.get(label, 0.0))
    return ranking


def _row(network: Network, seeds: Sequence[int], runs: Mapping[tuple[str, int], Record]) -> NetworkRow:
    results = {seed: runs[network.label, seed]["result"] for seed in seeds if (network.label, seed) in runs}
    top1 = spread({seed: result["top1"] for seed, result in results.items()})
    images = _mean(result.get("images") for result in results.values())
    return NetworkRow(
        label=network.label,
        backbone=network.base,
        attention=network.attention,
        plain=network.plain,
        instead_of=network.instead_of,
        n=len(results),
        top1=top1,
        chosen_top1=spread({seed: (r.get("validation_chosen") or {}).get("top1") for seed, r in results.items()}),
        metrics={
            name: spread({seed: result.get(metric.name) for seed, result in results.items()})
            for name, metric in of_study().items()
        },
        test_images=round(images) if images else None,
        test_se=binomial_se(top1.mean, round(images)) if top1 and images else None,
        params=_whole(_mean(result.get("params") for result in results.values())),
        flops=_whole(_mean(result.get("flops") for result in results.values())),
        seconds=_mean(result.get("seconds") for result in results.values()),
        images_per_s=_mean(result.get("images_per_s") for result in results.values()),
    )


def spread(by_seed: Mapping[Any, Any]) -> Spread | None:
    """Sum up one number of all seeds; None where none has it."""
    values = {seed: float(value) for seed, value in by_seed.items() if is_number(value)}
    if not values:
        return None
    mean, sd = _mean_and_sd(list(values.values()))
    return Spread(len(values), mean, sd, min(values.values()), max(values.values()), values)


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    return stdlib_statistics.fmean(values), stdlib_statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if is_number(value)]
    return stdlib_statistics.fmean(known) if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _failed(label: str, seed: int, record: Record) -> FailedCell:
    error = record.get("error") or {}
    message = f"{error.get('type', 'unknown error')}: {error.get('message', '')}".removesuffix(": ")
    return FailedCell(label, seed, message, int(record.get("attempts", 1)), str(record.get("run", "")))


def _class_difference(name: str, i: int, pairs: Iterable[tuple[Record, Record]]) -> ClassDifference | None:
    counts = [[(r["per_class"]["correct"][i], r["per_class"]["total"][i]) for r in pair] for pair in pairs]
    recalls = [
        tuple(100 * correct / total for correct, total in pair) for pair in counts if all(total for _, total in pair)
    ]
    if not recalls:
        return None
    ours, plain = zip(*recalls, strict=True)
    mean, sd = _mean_and_sd([a - b for a, b in recalls])
    images = stdlib_statistics.fmean(total for pair in counts for _, total in pair if total)
    return ClassDifference(
        name=name,
        n=len(recalls),
        plain_recall=stdlib_statistics.fmean(plain),
        recall=stdlib_statistics.fmean(ours),
        mean=mean,
        sd=sd,
        images=images,
    )


def _differing(runs: Mapping[tuple[str, int], Record], against: Mapping[str, str | None]) -> list[str]:
    """Say in a sentence each what is not the same in all finished runs.

    Args:
        runs: Records by label and seed.
        against: Label of the plain network that each label is compared with.
    """
    facts = {cell: _facts(record) for cell, record in runs.items()}
    names = dict.fromkeys(name for known in facts.values() for name in known)
    return [text for name in names if (text := _differs(name, facts, against))]


def _facts(record: Record) -> dict[str, str]:
    environment, machine = record.get("environment") or {}, (record.get("result") or {}).get("machine") or {}
    config = BEFORE | (record.get("config") or {})
    device = machine.get("device") or environment.get("device")
    facts = {
        "commit of csham": environment.get("commit"),
        "device": str(device).partition(":")[0] if device else None,  # which of several GPUs does not matter
        "precision": machine.get("precision") or config.get("precision"),
        "torch.compile": machine.get("compile"),
        "processor": environment.get("processor"),
        "number of threads": environment.get("threads"),
        "number of processes": environment.get("processes"),
        "sharing of a process": "yes" if environment.get("shares_process") else "no",
        "data": (record.get("data") or {}).get("fingerprint"),
        **{f"version of {name}": version for name, version in (environment.get("versions") or {}).items()},
        **{f"setting {name}": value for name, value in config.items() if name not in _NOT_SHARED},
    }
    # A list of a file and a tuple of today's are one setting.
    return {
        name: str(list(value) if isinstance(value, tuple) else value)
        for name, value in facts.items()
        if value is not None
    }


def _differs(
    name: str, facts: Mapping[tuple[str, int], Mapping[str, str]], against: Mapping[str, str | None]
) -> str | None:
    counts = Counter(known.get(name, "unknown") for known in facts.values())
    if len(counts) < 2:
        return None
    shown = ", ".join(f"{value} ({counted(count, 'run')})" for value, count in counts.most_common())
    text = f"The {name} differs between runs: {shown}"
    if name in _SPEED:
        return f"{text}; their seconds and images/s cannot be compared."
    pairs = sum(
        known.get(name) != facts[str(against.get(label)), seed].get(name)
        for (label, seed), known in facts.items()
        if (str(against.get(label)), seed) in facts
    )
    if pairs:
        text += f"; in {counted(pairs, 'pair')} between a network and the plain one, whose difference is "
        text += "then not the network's alone"
    return f"{text}."
