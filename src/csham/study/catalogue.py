"""Everything that was measured in a folder of studies and runs, as one table: a row for each network with a result.

The intervals are :mod:`csham.study.statistics`'s, of the mean over seeds and of the mean paired difference to the plain
network. A single run has neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csham.errors import UserError
from csham.study.findings import NetworkRow
from csham.study.overview import StudyPart
from csham.study.record import is_number, without_places, words_without_places
from csham.study.statistics import Interval, judge
from csham.study.study_file import FILE
from csham.training.metrics import DECIMALS
from csham.training.run_folder import RunFolder

__all__ = ["ResultRow", "read_results"]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One network's result.

    Attributes:
        result: Folder of the study or the run, below the folder that was read.
        network: Backbone.
        attention: Attention and strategy, or ``"none"``.
        data: Name of the dataset, or of the folder of images.
        image_size: Side in pixels.
        recipe: Recipe that the settings come from.
        epochs: Of each run.
        seeds: Runs finished.
        top1: Last epoch's on the test part, in percent: the mean over seeds.
        top1_interval: 95% interval of it; None of fewer than two seeds.
        difference: Mean of the paired differences to the plain network, in percentage points; None without pairs.
        difference_interval: 95% interval of it; None of fewer than two pairs.
        verdict: What the differences show, by the study's own correction for being many; None without pairs.
        cost: Training time over the plain network's, measured side by side; None where it was not.
        params: Parameters.
        command: Command that made it.
    """

    result: str
    network: str
    attention: str
    data: str
    image_size: int
    recipe: str
    epochs: int
    seeds: int
    top1: float
    top1_interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    verdict: str | None
    cost: float | None
    params: int | None
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON's values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_results(root: Path | str, note: Callable[[str], None] = lambda _: None) -> list[ResultRow]:
    """Read every study and every finished run below a folder, by their paths.

    Args:
        root: The folder, or one study or run.
        note: Told what a reader should know before relying on it.

    Raises:
        UserError: There is no result, or a file cannot be understood.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}. Name one that holds studies or runs.")
    rows = []
    for place in _places(root):
        name = place.relative_to(root).as_posix() if place != root else place.resolve().name
        rows += _of_study(place, name, note) if (place / FILE).is_file() else [_of_run(place, name)]
    if not rows:
        raise UserError(f"{root} holds no finished run, and no study that has one.")
    return rows


def _places(root: Path) -> Iterator[Path]:
    """Find the studies, and the finished runs that are not a study's."""
    for folder, folders, files in os.walk(root):
        if FILE in files or {"config.yaml", "summary.json"} <= set(files):
            yield Path(folder)
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _of_study(place: Path, name: str, note: Callable[[str], None]) -> list[ResultRow]:
    part = StudyPart.read(place)
    for sentence in part.notes:
        note(f"{name}: {sentence}")
    return [_of_network(part, row, name) for row in part.results.networks if row.top1 is not None]


def _of_network(part: StudyPart, row: NetworkRow, name: str) -> ResultRow:
    assert row.top1 is not None
    found = {one.label: one for one in part.results.comparisons if one.n}.get(row.label)
    times = part.measured_times()
    plain = found.against if found else None
    cost = times[row.label] / times[plain] if plain in times and row.label in times else None
    study = part.study
    return ResultRow(
        result=name,
        network=row.backbone,
        attention="none" if row.attention == "none" else row.label.removeprefix(f"{row.backbone} + "),
        data=Path(study.data.source).name,
        image_size=study.data.image_size,
        recipe=str(study.settings["recipe"]),
        epochs=study.settings["epochs"],
        seeds=row.n,
        top1=round(row.top1.mean, DECIMALS),
        top1_interval=_rounded(judge([list(row.top1.values.values())])[0].t_interval),
        difference=_rounded(found.mean) if found else None,
        difference_interval=_rounded(found.t_interval) if found else None,
        verdict=found.verdict if found else None,
        cost=None if cost is None else round(cost, DECIMALS),
        params=row.params,
        command=_portable(study.command),
    )


def _of_run(place: Path, name: str) -> ResultRow:
    run = RunFolder(place)
    config, summary = run.read_config(to_build=False), run.read_summary()
    missing = [key for key in ("top1", "epochs") if not is_number(summary.get(key))]
    if missing:
        raise UserError(f"{run.summary_file} is not that of a finished run: it lacks {', '.join(missing)}.")
    return ResultRow(
        result=name,
        network=config.base,
        attention="none" if config.attention == "none" else config.label.removeprefix(f"{config.base} + "),
        data=Path(without_places(config.data)).name,
        image_size=int(config.image_size or 0),
        recipe=config.recipe,
        epochs=summary["epochs"],
        seeds=1,
        top1=round(float(summary["top1"]), DECIMALS),
        top1_interval=None,
        difference=None,
        difference_interval=None,
        verdict=None,
        cost=None,
        params=summary.get("params") if is_number(summary.get("params")) else None,
        command=_portable(run.read_json("environment.json").get("command")),
    )


def _portable(command: Any) -> str:
    """Return commands, which ``&&`` joins where there are several, without the places of one machine."""
    return " && ".join(map(words_without_places, command.split(" && "))) if isinstance(command, str) else ""


def _rounded(value: Any) -> Any:
    """Round a number or an interval, of which more digits than these differ between processors."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_rounded(one) for one in value)
    return round(value, DECIMALS) + 0.0  # no -0.0
