"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from csham.training.config import TrainConfig

__all__ = ["learning_rate"]

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
_RISE = 0.3
_FIRST = 1 / 25
_LAST = _FIRST / 1e4


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step.

    Args:
        config: The schedule and its settings.
        step: Steps done before this one since the start of the run.
        steps_per_epoch: Steps of one epoch.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(step, total)
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / math.ceil(warmup)
    if config.schedule == "constant":
        return config.lr
    epoch = step // steps_per_epoch
    passed = sum(epoch >= round(milestone * config.epochs) for milestone in config.milestones)
    return config.lr * config.decay**passed


def _one_cycle(step: int, total: int) -> float:
    """Rise from 1/25 to 1 over the first 30% of the steps, then fall to almost 0, both along a cosine."""
    peak = _RISE * total - 1
    if step <= peak:
        return _cosine(_FIRST, 1.0, step / peak)
    return _cosine(1.0, _LAST, (step - peak) / max(total - 1 - peak, 1))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
