"""Estimate of how long a study will take: a few real training steps of each of its networks, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from csham.cost.passes import forward_of, seconds_per_call, training
from csham.memory import retain_memory
from csham.study.grid import Cell, Network, Study
from csham.training.config import timed_precision
from csham.training.machine import choose_device
from csham.training.turns import EVALUATED

__all__ = ["Probe", "estimate_seconds", "probe"]

_FEW_IMAGES = 8
_MOST_STEPS = 20


@dataclass(frozen=True)
class Probe:
    """Measurements of one network.

    Attributes:
        seconds_per_image: Of training.
        failed: Reason why it cannot be trained, if so.
    """

    seconds_per_image: float | None
    failed: str = ""


def probe(
    study: Study,
    networks: Sequence[Network],
    *,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 60.0,
    tell: Callable[[str], None] = lambda label: None,
) -> dict[Network, Probe]:
    """Time training steps on noise, without torch.compile.

    Args:
        study: Gives image size, batch size and precision.
        networks: Networks to time.
        device: Device, as in :class:`csham.training.config.TrainConfig`.
        threads: Of a job on the CPU; None leaves them as they are.
        seconds: To spend on all of them; a step that takes longer than its share is timed on fewer images.
        tell: Told each network's label.
    """
    place = torch.device(choose_device(device))
    before = torch.get_num_threads()
    if place.type == "cpu":
        retain_memory()
        torch.set_num_threads(threads or before)
    try:
        until = time.monotonic() + seconds
        measured = {}
        for number, network in enumerate(networks):
            tell(network.label)
            share = max(until - time.monotonic(), 0.0) / (len(networks) - number)
            measured[network] = _probe(study, network, place, share)
        return measured
    finally:
        torch.set_num_threads(before)


def estimate_seconds(study: Study, cell: Cell, measured: Probe, parts: tuple[int, int, int], epochs_done: int) -> float:
    """Estimate how long a cell still takes.

    Args:
        study: Study that it belongs to.
        cell: The cell.
        measured: Of its network.
        parts: Images of the training, validation and test part.
        epochs_done: Number of epochs that need not be trained again.
    """
    assert measured.seconds_per_image is not None
    train, validation, test = parts
    evaluated = validation + (test if study.settings["track_test"] else 0)
    per_epoch = train + EVALUATED * evaluated
    return measured.seconds_per_image * ((cell.config.epochs - epochs_done) * per_epoch + EVALUATED * test)


def _probe(study: Study, network: Network, device: torch.device, seconds: float) -> Probe:
    try:
        model = network.build(num_classes=study.data.classes, image_size=study.data.image_size)
        return Probe(_seconds_per_image(study, model, device, seconds))
    except Exception as err:  # whatever a network fails with is told, and the others are timed
        return Probe(None, f"{type(err).__name__}: {err}".splitlines()[0])


def _seconds_per_image(study: Study, model: nn.Module, device: torch.device, seconds: float) -> float:
    if device.type in ("cpu", "cuda"):
        model = model.to(memory_format=torch.channels_last)
    model = model.to(device)
    forward = forward_of(model, device, timed_precision(study.settings["precision"]), compiled=False)
    batch, size = study.settings["batch_size"], study.data.image_size

    def timed(images: int, budget: float) -> float:
        pixels = torch.randn(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        with training(model, forward, pixels) as step:
            seconds_per_call(step, device)
            one = seconds_per_call(step, device)
            more = min(int((budget - 2 * one) / one), _MOST_STEPS) if one > 0 else _MOST_STEPS
            return (seconds_per_call(step, device, more) if more >= 1 else one) / images

    few = min(_FEW_IMAGES, batch)
    per_image = timed(few, 0.0)
    left = seconds - 2 * few * per_image
    return timed(batch, left) if 3 * batch * per_image <= left else per_image
