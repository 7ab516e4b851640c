"""Names of several networks on one page: short, and each another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from csham.inference import Trained

__all__ = ["short_names"]


def short_names(networks: Sequence[Trained]) -> list[str]:
    """Return a name for each network: what it is, or its folder's name where others are the same, or both.

    Where all networks are of one kind, only their folders tell them apart.
    """
    labels = [network.label for network in networks]
    times = Counter(labels)
    if max(times.values()) == 1:
        return labels
    ends = _ends([_parts(Path(network.origin).absolute()) for network in networks])
    if len(times) == 1:
        return ends
    pairs = zip(labels, ends, strict=True)
    return [label if times[label] == 1 else f"{label} in {end}" for label, end in pairs]


def _parts(path: Path) -> tuple[str, ...]:
    """Take a path apart; that of a download from the Hub ends with its repository, not with a hash."""
    *above, repository, folder, revision = ("", "", *path.parts)
    return (*above, *repository.split("--")[1:]) if folder == "snapshots" else (*above, repository, folder, revision)


def _ends(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the shortest ends of paths that differ; of the same path, numbered."""
    for length in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(path[-length:]) for path in paths]
        if len(set(ends)) == len(set(paths)):
            break
    times, seen = Counter(ends), Counter[str]()
    names = []
    for end in ends:
        seen[end] += 1
        names.append(end if times[end] == 1 else f"{end} ({seen[end]})")
    return names
