"""Weights of attention by stage: how near they are to 1/2 and to 1, how much they vary, how many never do.

A weight is one of what an attention multiplies its map with: of one channel, one position, or one value. Weights that
are the same for every image are a constant that the next convolution or norm could hold as well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csham.attach.install import attached_modules
from csham.attach.maps import attention_maps
from csham.data import PackedDataset, prepare
from csham.data.dataset import describe_data
from csham.data.sources import check_there
from csham.errors import UserError
from csham.explain.explanation import point_shapes, points_by_stage, why_no_maps
from csham.explain.faithfulness import sample_test_images
from csham.inference.trained import Trained, load
from csham.inference.transform import ImageLike
from csham.probing import evaluating, uncompiled
from csham.study.grid import Cell, shared_settings
from csham.study.store import Store
from csham.training.run_folder import RunFolder
from csham.words import counted

__all__ = ["DEAD", "RunGates", "StageGates", "gate_table", "measure_gates", "measure_runs", "trained_runs"]

DEAD = 0.01
"""A weight is dead if its standard deviation over images is below this: to know the image changes it by a hundredth."""

Preparing = Callable[[int, int, str], None]


@dataclass(frozen=True)
class StageGates:
    """Weights of one kind at the points of one stage, over images; each number is a mean over the points.

    Attributes:
        stage: Label, as in :class:`csham.explain.Explanation`.
        kind: ``"channel"``, ``"spatial"`` or ``"full"``, one weight for each value.
        points: Points that compute such weights; those that borrow another's are left out.
        weights: Number of weights at a point.
        mean: Mean over images and weights.
        from_half: Mean distance from 1/2.
        from_one: Mean distance from 1.
        within: Standard deviation of the weights of one image, mean over images.
        across: Standard deviation of one weight over images, mean over weights.
        dead: Fraction of the weights that are dead (:data:`DEAD`).
        low: Least weight of all.
        high: Greatest.
        theta: Mean gate θ of gated points, which multiply by ``w + θ (1 - w)``: 1 where attention is shut out, 0 where
            there is nothing else, and free to leave that range; None of points without.
    """

    stage: str
    kind: str
    points: int
    weights: int
    mean: float
    from_half: float
    from_one: float
    within: float
    across: float
    dead: float
    low: float
    high: float
    theta: float | None


@dataclass(frozen=True)
class RunGates:
    """Weights of one trained network.

    Attributes:
        run: Its path.
        data: Name of the images.
        network: The network in a few words, with what else its training differs by from another's of the same words.
        seed: Of the run; None where that is not known.
        weights: Weights of its run that it has, in words.
        images: Test images that it saw.
        stages: In the order of the network; of none if it shows no weights.
        nothing: Reason, if it shows none.
    """

    run: str
    data: str
    network: str
    seed: int | None
    weights: str
    images: int
    stages: Sequence[StageGates]
    nothing: str | None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each stage and kind, ready for JSON and CSV."""
        of_run = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("stages", "nothing", "weights")}
        of_run["epoch"] = self.weights
        return [of_run | {f.name: getattr(one, f.name) for f in fields(one)} for one in self.stages]


NUMBERS = ("mean", "from_half", "from_one", "within", "across", "dead", "theta")
"""Numbers of :class:`StageGates` of which there are means over runs."""


def gate_table(runs: Iterable[RunGates]) -> list[dict[str, Any]]:
    """Return means over the runs of each network, by stage and kind, and standard deviations between its runs.

    Returns:
        Rows of ``data``, ``network``, ``stage``, ``kind``, ``runs``, ``points``, ``weights``, ``low`` and ``high``, and
        for each number its mean and, under ``<number>_sd``, the deviation; None for fewer than two runs.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        for row in run.rows():
            groups.setdefault(tuple(row[name] for name in ("data", "network", "stage", "kind")), []).append(row)
    return [_together(key, rows) for key, rows in groups.items()]


def measure_runs(
    paths: Iterable[Path | str],
    *,
    samples: int = 256,
    seed: int = 0,
    data: str | None = None,
    weights: str | None = None,
    batch_size: int = 16,
    device: str | None = "cpu",
    progress: Preparing | None = None,
    on_run: Callable[[RunGates], None] | None = None,
) -> list[RunGates]:
    """Measure trained networks on test images of their own data.

    Args:
        paths: Run folders; :func:`trained_runs` lists those of a study.
        samples: Test images, drawn by ``seed`` from the test part of each run; all where there are fewer.
        seed: Decides which, the same for runs of the same data and split.
        data: The runs' images where they lie now, if that is elsewhere.
        weights: ``"last"`` or ``"best"``; see :func:`csham.load`.
        batch_size: Images at a time.
        device: See :func:`csham.load`.
        progress: Told about the reading of images.
        on_run: Told of each run once it is measured.

    Raises:
        UserError: A path is no run, its images are not there any more, or there are fewer than two.

    Examples:
        >>> runs = csham.explain.measure_runs(csham.explain.trained_runs(["studies/cifar100-fast-30"]))
        >>> rows = csham.explain.gate_table(runs)
    """
    if samples < 2:
        raise UserError(f"the number of samples must be at least 2, for weights vary over images; got {samples}.")
    opened: dict[tuple[str, int], PackedDataset] = {}
    found, trainings = [], []
    for path in paths:
        trained = load(path, weights=weights, device=device)
        config = RunFolder(Path(path)).read_config()
        if data is None:
            check_there(config.data, str(path), "Say where they are now with --data.")
        key = (data or config.data, trained.info.image_size)
        if key not in opened:  # one at a time is held
            opened = {key: prepare(key[0], image_size=key[1], max_bad=config.max_bad, progress=progress)}
        if list(opened[key].classes) != list(trained.classes):
            raise UserError(f"{key[0]} has other classes than the data of {path}. --data takes the same images, moved.")
        images = sample_test_images(trained, samples, seed=seed, dataset=opened[key])
        stages = measure_gates(trained, images, batch_size=batch_size)
        attached = bool(attached_modules(uncompiled(trained.network)))
        nothing = None if stages else why_no_maps(trained.info.attention, attached=attached)
        told = (str(path), opened[key].name, trained.label, config.seed, str(trained.run_weights), len(images))
        found.append(RunGates(*told, stages, nothing))
        trainings.append(shared_settings(config) | {"images": describe_data(opened[key])["fingerprint"][:7]})
        if on_run is not None:
            on_run(found[-1])
    return _told_apart(found, trainings)


def _told_apart(runs: Sequence[RunGates], trainings: Sequence[Mapping[str, Any]]) -> list[RunGates]:
    """Add to names of networks what their trainings differ by, but for the seed: there is no mean over these."""
    named: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run, training in zip(runs, trainings, strict=True):
        named.setdefault((run.data, run.network), []).append(training)
    told = []
    for run, training in zip(runs, trainings, strict=True):
        others = named[run.data, run.network]
        differ = [name for name in training if any(other[name] != training[name] for other in others)]
        words = [run.network, *(f"{name.replace('_', ' ')} {training[name]}" for name in differ)]
        told.append(replace(run, network=", ".join(words)))
    return told


def trained_runs(paths: Iterable[Path | str], note: Callable[[str], None] | None = None) -> list[Path]:
    """Put the finished runs in the place of a study among some paths, each once however often it is named.

    Args:
        paths: Run folders and folders of studies.
        note: Told which finished runs of a study are not in its folder; None tells nobody.

    Raises:
        UserError: A study keeps no trained networks.
    """
    runs = {run.resolve(): run for path in map(Path, paths) for run in _runs_of(path, note)}
    return list(runs.values())


def measure_gates(trained: Trained, images: Iterable[ImageLike], *, batch_size: int = 16) -> list[StageGates]:
    """Measure the weights of a network's attention on images, without keeping them.

    Args:
        trained: Network that :func:`csham.load` returned, or :meth:`csham.Trained.of` made.
        images: At least two: files, images of Pillow or arrays, (H, W, 3) uint8.
        batch_size: Images at a time; decides nothing else.

    Returns:
        A row for each stage and kind of weights; none of a network without attention, or whose attention shows none.

    Raises:
        UserError: Weights that are not finite, or fewer than two images.
    """
    network = uncompiled(trained.network)
    points = {point.name: point for point in attached_modules(network)}
    if not points:
        return []
    sums: dict[tuple[str, str], _Sums] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    remaining = iter(images)
    while batch := list(islice(remaining, batch_size)):
        with evaluating(network), attention_maps(network) as maps, point_shapes(network) as seen:
            network(trained.batch(batch))
        shapes = seen
        for name, by_kind in maps.items():
            for kind, weights in by_kind.items():
                if kind != "channel" or points[name].borrows is None:
                    sums.setdefault((name, kind), _Sums()).add(weights)
    if any(one.images < 2 for one in sums.values()):
        raise UserError("weights vary over images, and there is but one. Give two or more.")
    if not all(math.isfinite(one.total.sum()) for one in sums.values()):
        raise UserError(f"{trained.origin}: some weights of its attention are not finite; the network is damaged.")
    thetas = {name: None if point.gate is None else point.gate.item() for name, point in points.items()}
    return list(_by_stage(points_by_stage(shapes), sums, thetas))


class _Sums:
    """A summary of the weights of one kind at one point, of one size whatever the number of images."""

    def __init__(self) -> None:
        self.images = 0
        self.first: Tensor | float = 0.0
        self.total = self.squares = torch.zeros(())
        self.half = self.one = self.within = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, weights: Tensor) -> None:
        """Add those of a batch, (B, ...)."""
        w = weights.flatten(1).cpu().double()
        if not self.images:
            self.first = w[0]
        self.images += len(w)
        self.total = self.total + w.sum(0)
        # From the first image's, so that what hardly varies does not drown in rounding.
        self.squares = self.squares + (w - self.first).square().sum(0)
        self.half += float((w - 0.5).abs().mean(1).sum())
        self.one += float((w - 1).abs().mean(1).sum())
        self.within += float(w.std(1, correction=0).sum())
        self.low, self.high = min(self.low, float(w.min())), max(self.high, float(w.max()))

    def numbers(self) -> dict[str, float]:
        """Return those of :class:`StageGates`."""
        N = self.images
        offset = self.total - N * self.first
        across = ((self.squares - offset.square() / N).clamp_min(0) / (N - 1)).sqrt()
        return {
            "mean": float(self.total.mean()) / N,
            "from_half": self.half / N,
            "from_one": self.one / N,
            "within": self.within / N,
            "across": float(across.mean()),
            "dead": float((across < DEAD).double().mean()),
        }


def _by_stage(
    stages: Mapping[str, Sequence[str]], sums: Mapping[tuple[str, str], _Sums], thetas: Mapping[str, float | None]
) -> Iterator[StageGates]:
    for stage, names in stages.items():
        for kind in ("channel", "spatial", "full"):
            held = {name: sums[name, kind] for name in names if (name, kind) in sums}
            if not held:
                continue
            numbers = [one.numbers() for one in held.values()]
            gates = [theta for name in held if (theta := thetas[name]) is not None]
            yield StageGates(
                stage,
                kind,
                len(held),
                round(float(np.mean([one.total.numel() for one in held.values()]))),
                **{name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]},
                low=min(one.low for one in held.values()),
                high=max(one.high for one in held.values()),
                theta=float(np.mean(gates)) if gates else None,
            )


def _runs_of(path: Path, note: Callable[[str], None] | None) -> list[Path]:
    store = Store(path, note)
    if not store.exists:
        return [path]
    cells = store.study.cells()
    finished = {cell: folder for cell in cells if RunFolder(folder := store.run_folder(cell.name)).finished}
    if not finished:
        raise UserError(
            f"{path} has no trained networks, only what was measured of them: its folder runs/ stayed where they were "
            "trained. Name the study there, or run folders."
        )
    if note is not None:
        for text in _left_out(store, cells, finished):
            note(f"{path}: {text}")
    return list(finished.values())


def _left_out(store: Store, cells: Sequence[Cell], here: Container[Cell]) -> Iterator[str]:
    """Say of which networks finished runs are elsewhere, as of a study that was put together."""
    done = {key for key, record in store.by_key().items() if record["status"] == "done"}
    runs = [cell for cell in cells if cell.key in done or cell in here]
    several = Counter(cell.network.label for cell in runs)
    for label, number in Counter(cell.network.label for cell in runs if cell not in here).items():
        have = "has" if several[label] == 1 else "have"
        yield f"{number} of {counted(several[label], 'run')} of {label} {have} no run folder here"


def _together(key: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    together: dict[str, Any] = dict(zip(("data", "network", "stage", "kind"), key, strict=True))
    together |= {"runs": len(rows), "points": rows[0]["points"], "weights": rows[0]["weights"]}
    for name in NUMBERS:
        values = [row[name] for row in rows if row[name] is not None]
        together[name] = float(np.mean(values)) if values else None
        together[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return together | {"low": min(row["low"] for row in rows), "high": max(row["high"] for row in rows)}
