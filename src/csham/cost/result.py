"""Measured costs, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Cost", "Spread"]


@dataclass(frozen=True)
class Spread:
    """The middle of a few measurements, and between what the middle half of them lies.

    Attributes:
        median: The median.
        lower: The first quartile.
        upper: The third.
    """

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Summarise measurements; None where there are none. Quartiles between two values are interpolated."""
        if not values:
            return None
        lower, median, upper = (float(value) for value in np.percentile(values, (25, 50, 75)))
        return cls(median, lower, upper)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of one network, at one batch size and precision, eager or compiled.

    Attributes:
        name: The network's.
        batch_size: Images of a batch; ``latency_ms`` is of one image whatever this is.
        precision: ``"fp32"`` or ``"bf16"`` (autocast).
        compiled: True if torch.compile was used.
        device: Device it ran on.
        input_size: (C, H, W) of an image.
        params: Parameters.
        params_extra: Parameters beyond the first network's.
        flops: Floating-point operations for one image; see :func:`csham.cost.count_flops`.
        flops_matmul: Those of convolutions and matrix products alone.
        flops_uncounted: Operators that have no formula.
        latency_ms: A forward pass over one image.
        images_per_s: Forward passes over batches.
        train_step_ms: Forward pass, loss, backward pass and SGD step over a batch.
        peak_mib: The most memory of a forward pass over a batch, with the parameters and the batch.
        train_peak_mib: The same of a training step, with gradients and momentum.
        ratios: Against the first network at the same settings, by the names ``params``, ``flops``, ``flops_matmul``,
            ``latency``, ``inference``, ``train_step`` (times: above 1 is slower), ``peak`` and ``train_peak``. Those of
            times are medians over the rounds.
        rounds: Rounds of timing.
        failed: Measurements that failed, and why; empty if all was.
    """

    name: str
    batch_size: int
    precision: str
    compiled: bool
    device: str
    input_size: tuple[int, int, int]
    params: int | None = None
    params_extra: int | None = None
    flops: int | None = None
    flops_matmul: int | None = None
    flops_uncounted: tuple[str, ...] = ()
    latency_ms: Spread | None = None
    images_per_s: Spread | None = None
    train_step_ms: Spread | None = None
    peak_mib: float | None = None
    train_peak_mib: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    rounds: int = 0
    failed: str = ""

    @property
    def macs(self) -> int | None:
        """Multiply-adds of convolutions and matrix products, for one image."""
        return None if self.flops_matmul is None else self.flops_matmul // 2

    def to_row(self) -> dict[str, Any]:
        """Return one flat row of plain values, with the same columns for every network; None where nothing is known."""
        channels, height, width = self.input_size
        row: dict[str, Any] = {
            "network": self.name,
            "batch_size": self.batch_size,
            "precision": self.precision,
            "compiled": self.compiled,
            "device": self.device,
            "channels": channels,
            "height": height,
            "width": width,
            "params": self.params,
            "params_extra": self.params_extra,
            "flops": self.flops,
            "flops_matmul": self.flops_matmul,
            "macs": self.macs,
        }
        for name in ("latency_ms", "images_per_s", "train_step_ms"):
            spread: Spread | None = getattr(self, name)
            row[name] = spread and spread.median
            row[f"{name}_q1"] = spread and spread.lower
            row[f"{name}_q3"] = spread and spread.upper
        row |= {"peak_mib": self.peak_mib, "train_peak_mib": self.train_peak_mib}
        row |= {f"{name}_ratio": self.ratios.get(name) for name in RATIOS}
        return row | {
            "rounds": self.rounds,
            "flops_uncounted": " ".join(self.flops_uncounted),
            "failed": self.failed,
        }


RATIOS = ("params", "flops", "flops_matmul", "latency", "inference", "train_step", "peak", "train_peak")
