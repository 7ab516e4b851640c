"""Differences between the runs of a study that there should not be: code, versions, machines, settings, data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from csham.backbones.spec import NETWORK_FIELDS
from csham.training.config import BEFORE, MACHINE_SETTINGS, SOURCE_SETTINGS

__all__ = ["find_mixed"]

Record = Mapping[str, Any]

# What a cell chooses, and what only says where and how fast it runs or where its input lies.
_NOT_SHARED = frozenset({*NETWORK_FIELDS, "seed", *MACHINE_SETTINGS, *SOURCE_SETTINGS})

# These change seconds, and the result only in its last bits.
_SPEED = frozenset({"processor", "number of threads", "number of processes", "torch.compile"})


def find_mixed(runs: Mapping[tuple[str, int], Record], against: Mapping[str, str | None]) -> list[str]:
    """Say in a sentence each what is not the same in all finished runs.

    Args:
        runs: Records by label and seed.
        against: Label of the plain network that each label is compared with.
    """
    facts = {cell: _facts(record) for cell, record in runs.items()}
    names = dict.fromkeys(name for known in facts.values() for name in known)
    return [text for name in names if (text := _warning(name, facts, against))]


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
        "data": (record.get("data") or {}).get("fingerprint"),
        **{f"version of {name}": version for name, version in (environment.get("versions") or {}).items()},
        **{f"setting {name}": value for name, value in config.items() if name not in _NOT_SHARED},
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _warning(
    name: str, facts: Mapping[tuple[str, int], Mapping[str, str]], against: Mapping[str, str | None]
) -> str | None:
    counts = Counter(known.get(name, "unknown") for known in facts.values())
    if len(counts) < 2:
        return None
    shown = ", ".join(f"{value} ({count} run{'s' if count > 1 else ''})" for value, count in counts.most_common())
    text = f"The {name} differs between runs: {shown}"
    if name in _SPEED:
        return f"{text}; their seconds and images/s cannot be compared."
    pairs = sum(
        known.get(name) != facts[str(against.get(label)), seed].get(name)
        for (label, seed), known in facts.items()
        if (str(against.get(label)), seed) in facts
    )
    if pairs:
        text += f"; in {pairs} pair{'s' if pairs > 1 else ''} between a network and the plain one, whose difference is "
        text += "then not the network's alone"
    return f"{text}."
