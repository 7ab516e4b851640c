"""Where attention can be attached: attachment points by position, and their channels by a probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csham.attach.names import POSITIONS
from csham.errors import UserError, unknown_name

__all__ = ["Point", "find_points"]

# Sides at which a network is tried, in pixels; small ones are quick, and some networks need large ones.
_PROBE_SIZES = (64, 224, 32, 299)


@dataclass(frozen=True)
class Point:
    """A place in a network whose output attention can rescale.

    Attributes:
        name: The module whose output it is, as ``named_modules`` spells it.
        channels: Channels of that output.
        stage: Number of the stage, from 0; a stage is a run of points with the same number of channels.
    """

    name: str
    channels: int
    stage: int


def find_points(model: nn.Module, position: str, input_size: tuple[int, int, int] | None = None) -> list[Point]:
    """Find a network's attachment points, in the order in which it reaches them.

    Args:
        model: Any network that takes one batch of images. It is run once, in evaluation mode and without gradients, and
            left as it was.
        position: One of :data:`csham.attach.POSITIONS`.
        input_size: (C, H, W) of the images it takes; by default what its convolutions say and a few common sizes.

    Raises:
        UserError: An unknown position, a network that has no such points, or one that cannot be run.
    """
    if position not in POSITIONS:
        raise unknown_name("position", position, POSITIONS)
    names = list(_residual_ends(model))
    if not names:
        raise UserError(
            f"attach: found no residual branches in {type(model).__name__}. position='residual' needs blocks as in a "
            "ResNet: conv1, bn1, conv2, bn2 (and conv3, bn3) and an optional downsample."
        )
    stages: list[Point] = []
    for name, channels in _probe(model, names, input_size):
        same = bool(stages) and stages[-1].channels == channels
        stage = stages[-1].stage + (not same) if stages else 0
        stages.append(Point(name, channels, stage))
    return stages


def _residual_ends(model: nn.Module) -> Iterator[str]:
    """Name the last module of every residual branch of ResNet-like blocks (timm's, torchvision's, ours)."""
    for name, block in model.named_modules():
        children = block._modules
        if not {"conv1", "bn1", "conv2", "bn2"} <= children.keys() or not hasattr(block, "downsample"):
            continue
        last = "bn3" if "conv3" in children else "bn2"
        if isinstance(children.get("se"), nn.Module):
            last = "se"
        yield f"{name}.{last}" if name else last


def _probe(model: nn.Module, names: list[str], input_size: tuple[int, int, int] | None) -> list[tuple[str, int]]:
    """Run the network once and note the channels of every named module's output, in execution order."""
    seen: dict[str, int] = {}

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            seen.setdefault(name, output.shape[1])

    handles = [model.get_submodule(n).register_forward_hook(partial(note, n)) for n in names]
    try:
        _run_once(model, input_size)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in seen]
    if missing:
        raise UserError(
            f"attach: {missing[0]} gave no feature map (B, C, H, W) when {type(model).__name__} was run once."
        )
    return list(seen.items())


def _run_once(model: nn.Module, input_size: tuple[int, int, int] | None) -> None:
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    device, dtype = (first.device, first.dtype) if first is not None else (torch.device("cpu"), torch.float32)
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    in_chans = conv.in_channels if conv is not None else 3
    sizes = [input_size] if input_size else [(in_chans, side, side) for side in _PROBE_SIZES]
    failures = []
    with _evaluating(model):
        for size in sizes:
            try:
                model(torch.zeros(1, *size, device=device, dtype=dtype))
            except Exception as err:  # any failure of a stranger's network means: try the next size
                failures.append(f"{size}: {err}")
            else:
                return
    raise UserError(
        f"attach: {type(model).__name__} could not be run to find its channels. Pass input_size=(C, H, W). "
        f"It said, at {failures[-1]}"
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
