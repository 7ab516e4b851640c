"""Who competes in attention_cost.py: CSHAM by its kernels and in plain PyTorch, and timm's attentions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

import csham
from csham.attach.acceleration import accelerate
from csham.ops import reference

__all__ = ["OPS", "REFERENCE", "TIMM", "Contender", "Shape", "contenders", "floor_copies"]

Shape = tuple[int, int, int, int]
Formula = Callable[[Any, Tensor], Tensor]
Way = tuple[str, nn.Module, nn.Module | None]

REFERENCE, TIMM = "reference", "timm"

# How often an x-sized array must be read or written, forward and backward; a copy is two. The statistics take one read:
# an image that was read for those over positions is in cache for those over channels. Scaling reads and writes, after
# the whole batch, whose norms the spatial weights need. Backward: dy and x for the weights' gradients, then dy and, for
# the maxima, x again, and dx. Attentions that only average need x no second time.
_TRAVERSALS = {
    "csham": (3, 5),
    "csham_channel": (3, 5),
    "csham_spatial": (3, 5),
    "csham_borrowing": (3, 5),
    "se": (3, 4),
    "eca": (3, 4),
    "cbam": (3, 5),
    "copy": (2, 0),
    "clone": (2, 0),
}
_TIMMS: dict[str, Callable[[int], nn.Module]] = {"se": SEModule, "eca": EcaModule, "cbam": CbamModule}

OPS = tuple(op for op in _TRAVERSALS if op not in ("copy", "clone"))


@dataclass(frozen=True)
class Contender:
    """One attention, run in one way.

    Attributes:
        op: What it computes, one of :data:`OPS`.
        implementation: ``"cpu"`` or ``"triton"`` for csham's kernels (timm's modules after ``csham.accelerate`` too),
            ``"reference"`` for CSHAM in plain PyTorch, ``"timm"``.
        compiled: Whether torch.compile is used.
        module: The attention.
        oracle: The same mathematics from the same weights, to be run in float32; None where there is nothing to prove.
    """

    op: str
    implementation: str
    compiled: bool
    module: nn.Module
    oracle: nn.Module | None

    @property
    def name(self) -> str:
        """As progress lines and errors call it."""
        return f"{self.op} ({self.implementation}, {'compiled' if self.compiled else 'eager'})"


def floor_copies(op: str, direction: str) -> float:
    """Return how many copies of x the passes over memory that ``op`` cannot avoid amount to.

    Args:
        op: One of :data:`OPS`, ``"copy"`` or ``"clone"``.
        direction: ``"inference"``, ``"forward"`` or ``"forward_backward"``.
    """
    forward, backward = _TRAVERSALS[op]
    return (forward + backward if direction == "forward_backward" else forward) / 2


def contenders(
    ops: Sequence[str], shape: Shape, kernels: str, *, compiled: bool, device: torch.device
) -> Iterator[Contender]:
    """Build every attention in every way of running it.

    Args:
        ops: Of :data:`OPS`.
        shape: Of the map, (B, C, H, W).
        kernels: What csham runs here, as :func:`csham.ops.choose` names it.
        compiled: Whether by torch.compile too.
        device: Where.
    """
    for op in ops:
        torch.manual_seed(0)
        ways = _timms(op, shape[1], kernels) if op in _TIMMS else _cshams(op, shape, kernels)
        for implementation, module, oracle in ways:
            # CSHAM's single steps are there to see where its time goes, for which eager suffices.
            for one in (False, True) if compiled and not op.startswith("csham_") else (False,):
                yield Contender(op, implementation, one, *_copied((module, oracle), device))


def _cshams(op: str, shape: Shape, kernels: str) -> Iterator[Way]:
    build, formula = _CSHAMS[op]
    layer = build(shape)
    plain = Plain(layer, formula)
    if kernels != REFERENCE:
        yield kernels, layer, plain
        yield REFERENCE, plain, None
    else:
        yield REFERENCE, layer, None


def _timms(op: str, channels: int, kernels: str) -> Iterator[Way]:
    module = _TIMMS[op](channels)
    yield TIMM, module, None
    if kernels != REFERENCE:
        faster = copy.deepcopy(module)
        accelerate(faster)
        yield kernels, faster, module


def _copied(pair: tuple[nn.Module, nn.Module | None], device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    module, oracle = (None if one is None else copy.deepcopy(one).to(device) for one in pair)
    assert module is not None
    return module, oracle


class Borrowing(nn.Module):
    """The spatial step on channel weights of another point: the other half of strategy ``transfer``."""

    def __init__(self, batch_size: int, channels: int) -> None:
        super().__init__()
        self.spatial = csham.SpatialAttention(channels)
        self.w = nn.Parameter(torch.rand(batch_size, channels).mul_(0.5).add_(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``, (B, C, H, W)."""
        return self.spatial.attend(x, channel_weights=self.w)


class Plain(nn.Module):
    """A layer of csham's computed by the definition, whatever kernels there are."""

    def __init__(self, layer: nn.Module, formula: Formula) -> None:
        super().__init__()
        self.layer = layer
        self._formula = formula

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``, (B, C, H, W)."""
        return self._formula(self.layer, x)


def _hybrid(layer: Any, x: Tensor) -> Tensor:
    return _spatial(layer.spatial, _channel(layer.channel, x))


def _channel(layer: Any, x: Tensor) -> Tensor:
    return reference.scale(x, reference.channel_weights(x, *layer.operands()))


def _spatial(layer: Any, x: Tensor) -> Tensor:
    return reference.scale(x, reference.spatial_weights(x, *layer.operands()))


def _borrowing(layer: Any, x: Tensor) -> Tensor:
    return _spatial(layer.spatial, reference.scale(x, layer.w))


_CSHAMS: dict[str, tuple[Callable[[Shape], nn.Module], Formula]] = {
    "csham": (lambda shape: csham.CSHAM(shape[1]), _hybrid),
    "csham_channel": (lambda shape: csham.ChannelAttention(shape[1]), _channel),
    "csham_spatial": (lambda shape: csham.SpatialAttention(shape[1]), _spatial),
    "csham_borrowing": (lambda shape: Borrowing(shape[0], shape[1]), _borrowing),
}
