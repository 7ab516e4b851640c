"""Costs of networks, measured side by side in one run of :mod:`csham.cost`: a study's are kept in ``costs.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csham.errors import UserError
from csham.files import has_right_sum, parse_json, read_plain, summed, write_atomically
from csham.provenance import circumstances
from csham.study.grid import Network, Study
from csham.study.record import is_number
from csham.training.config import timed_precision

if TYPE_CHECKING:
    from torch import nn

    from csham.backbones.spec import NetworkSpec
    from csham.cost import Comparison, Cost
    from csham.cost.comparison import Progress

__all__ = ["COSTS_FILE", "make_comparison", "measure_costs", "read_costs", "run_comparison"]

COSTS_FILE = "costs.json"

_FORMAT = 2
_WITHOUT_SUM = 1
# Of circumstances(): what times depend on. The date and the commit change without changing the machine.
_MACHINE = ("processor", "cpu_capability", "threads", "torch")
# How often the batch is halved where a network's training step does not fit into memory.
_HALVINGS = 4


def measure_costs(
    study: Study,
    path: Path,
    *,
    device: str = "auto",
    seconds: float = 300.0,
    rounds: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every network of a study in turns, unless ``costs.json`` has all of them from this machine.

    At the study's batch size, or a half, a quarter ... of it where a network does not fit into memory.

    Args:
        study: Gives classes, image size, batch size and precision.
        path: The study's folder.
        device: As in :class:`csham.training.config.TrainConfig`.
        seconds: Time after which no further round begins, after the third.
        rounds: Exactly so many.
        progress: Told what happens.

    Returns:
        Contents of the file: ``finished`` (False after Ctrl-C), ``machine``, ``measured`` (batch size, precision, ...)
        and ``costs``, a row for each network. A network that could not be measured has its error under ``failed``.

    Raises:
        UserError: The device is not there.
    """
    # Imported here: it imports PyTorch.
    from csham.training.machine import choose_device  # noqa: PLC0415

    measured = {
        "networks": [network.to_dict() for network in study.networks],
        "num_classes": study.data.classes,
        "image_size": study.data.image_size,
        "batch_size": study.settings["batch_size"],
        "precision": timed_precision(study.settings["precision"]),
        "device": choose_device(device),
        "compiled": False,
    }
    try:
        before = read_costs(path)
    except UserError:
        before = None  # they are measured again
    if before is not None and _same(before, measured):
        return before
    limits = {"seconds": seconds, "rounds": rounds}
    costs, finished = _measure(study.networks, measured, limits, progress)
    content = {
        "format": _FORMAT,
        "finished": finished,
        "machine": circumstances(),
        "measured": measured,
        "costs": [_row(network, cost, study) for network, cost in zip(study.networks, costs, strict=True)],
    }
    text = json.dumps(summed(content), indent=2) + "\n"
    write_atomically(path / COSTS_FILE, lambda file: file.write(text.encode()))
    return content


def read_costs(path: Path) -> dict[str, Any] | None:
    """Read a study's ``costs.json``; None where there is none.

    Raises:
        UserError: It cannot be read, or was changed since it was written.
    """
    try:
        content = parse_json(read_plain(path / COSTS_FILE))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        raise UserError(f"{COSTS_FILE} cannot be read ({type(err).__name__}: {err})") from err
    if not isinstance(content, dict) or content.get("format", _WITHOUT_SUM) not in (_WITHOUT_SUM, _FORMAT):
        raise UserError(f"{COSTS_FILE} is not one that this version of csham reads")
    right = has_right_sum(content)
    if right is False or (right is None and content.get("format") == _FORMAT):
        raise UserError(f"{COSTS_FILE} was changed since it was written")
    rows = content.get("costs")
    if not isinstance(rows, list) or not all(map(_is_row, rows)) or not isinstance(content.get("machine", {}), dict):
        raise UserError(f"{COSTS_FILE} holds something else than costs")
    content.pop("sum", None)
    return content


def make_comparison(
    networks: Mapping[str, NetworkSpec],
    *,
    num_classes: int,
    image_size: int,
    device: str = "auto",
    threads: int | None = None,
    baselines: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Prepare to measure networks in turns.

    Args:
        networks: By name.
        num_classes: Width of the logits.
        image_size: Side of the images, in pixels.
        device: As in :class:`csham.training.config.TrainConfig`.
        threads: On the CPU; None leaves them as they are.
        baselines: The network that each one's ratios are against; the first where it is not named.
        progress: Told what happens.
        seed: Of weights, images and the order in each round.
        **settings: Others of :class:`csham.cost.Settings`.

    Raises:
        UserError: The device is not there, or lacks a compiler that the settings want.
    """
    # Imported here, so that a misspelt name is answered without importing PyTorch.
    import torch  # noqa: PLC0415

    from csham.cost import Comparison, Settings  # noqa: PLC0415
    from csham.training.machine import choose_device, missing_compiler  # noqa: PLC0415

    if threads is not None:
        torch.set_num_threads(threads)
    place = torch.device(choose_device(device))
    missing = missing_compiler(place.type) if True in settings.get("compiled", ()) else None
    if missing is not None:
        raise UserError(f"--compile: {missing}. Install it, or use --no-compile.")

    def build(network: NetworkSpec) -> nn.Module:
        torch.manual_seed(seed)
        return network.build(num_classes=num_classes, image_size=image_size)

    sources = {name: partial(build, network) for name, network in networks.items()}
    size = (3, image_size, image_size)
    return Comparison(sources, Settings(**settings, seed=seed, input_size=size, device=place), progress, baselines)


def run_comparison(comparison: Comparison) -> bool:
    """Measure; False if Ctrl-C ended it early."""
    try:
        comparison.run()
    except KeyboardInterrupt:
        return False
    return True


def _is_row(row: Any) -> bool:
    """Return True if something may be one network's costs, in the numbers that are shown."""
    if not isinstance(row, dict) or not isinstance(row.get("network"), str):
        return False
    return all(row.get(name) is None or is_number(row[name]) for name in _NUMBERS)


_NUMBERS = ("params", "flops", "train_step_ms", "images_per_s", "latency_ms", "peak_mib", "train_peak_mib")


def _same(content: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """Return True if a file is of these networks, measured so, on this machine."""
    before, now = content.get("machine", {}), circumstances()
    same_machine = all(before.get(name) == now[name] for name in _MACHINE)
    return bool(content.get("finished")) and content.get("measured") == measured and same_machine


def _measure(
    networks: Sequence[Network], measured: Mapping[str, Any], limits: Mapping[str, Any], progress: Progress | None
) -> tuple[list[Cost], bool]:
    plain = {network.base: network.label for network in networks if network.plain}
    baselines = {n.label: plain.get(n.base.partition("@")[0], n.label) for n in networks}
    batch = measured["batch_size"]
    for halving in range(_HALVINGS + 1):
        comparison = make_comparison(
            {network.label: network for network in networks},
            num_classes=measured["num_classes"],
            image_size=measured["image_size"],
            device=measured["device"],
            baselines=baselines,
            progress=progress,
            batch_sizes=(max(1, batch >> halving),),
            precisions=(measured["precision"],),
            compiled=(measured["compiled"],),
            **limits,
        )
        finished = run_comparison(comparison)
        costs = comparison.costs()
        if not (finished and any("out of memory" in cost.failed for cost in costs)):
            break
    return costs, finished


def _row(network: Network, cost: Cost, study: Study) -> dict[str, Any]:
    step_ms = cost.train_step_ms
    return {
        **cost.to_row(),
        **network.to_dict(),
        "network": network.label,
        "num_classes": study.data.classes,
        "train_images_per_s": 1000 * cost.batch_size / step_ms.median if step_ms else None,
    }
