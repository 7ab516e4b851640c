"""Steps of a run: the batch that fits the training part, what to say of it, and the learning rate of each step.

The rate is a pure function of the step, so that a resumed run needs no scheduler state.

Nothing here imports PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import replace

from csham.data.names import CROP_SCALE, batches_per_epoch
from csham.training.config import TrainConfig
from csham.training.course import schedule_notes, settings_at
from csham.training.recipes import RECIPES
from csham.words import counted

__all__ = [
    "FEW_STEPS",
    "fit_batch",
    "learning_rate",
    "number_of_steps",
    "steps_notes",
    "steps_of_update",
    "updates_in",
]

STEPS_PER_EPOCH = 12  # what a batch that is not given is made small for
SMALLEST_BATCH = 8  # the statistics of batch norms over fewer images say little

# A ResNet-14 knows 65% of the digits after 42 steps, and 98.6% after 105. Of four classes of Caltech-101 it knows half
# after 60 steps, hardly more after 120 and 210, and 72% after 450, as with batches of 16 of 225 images.
FEW_STEPS = 300

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
_RISE = 0.3
_FIRST = 1 / 25
_LAST = _FIRST / 1e4


def fit_batch(config: TrainConfig, train_images: int) -> TrainConfig:
    """Replace ``batch_size="auto"`` by the recipe's, or by what makes enough steps of a small training part.

    That is the largest power of two with which an epoch has ``STEPS_PER_EPOCH`` steps, and at least
    ``SMALLEST_BATCH`` where there are so many images. A run that drops an epoch's last images is of before
    batches were fitted, and gets the recipe's.

    Args:
        config: The settings.
        train_images: In the training part.
    """
    if config.batch_size != "auto":
        return config
    most = RECIPES[config.recipe].batch_size
    if config.last_batch == "drop":
        return replace(config, batch_size=most)
    batch = 2
    while 2 * batch <= min(most, train_images) and _is_worth(2 * batch, train_images):
        batch *= 2
    return replace(config, batch_size=batch)


def _is_worth(batch: int, train_images: int) -> bool:
    return batch <= SMALLEST_BATCH or batches_per_epoch(train_images, batch, "fill") >= STEPS_PER_EPOCH


def number_of_steps(config: TrainConfig, train_images: int) -> int:
    """Return the steps of a whole run, whose batch has been fitted."""
    return config.epochs * batches_per_epoch(train_images, config.images_per_step, config.last_batch)


def updates_in(steps: int, accumulate: int) -> int:
    """Return how many updates of the weights an epoch's first steps begin."""
    return -(-steps // accumulate)


def steps_of_update(step: int, steps_per_epoch: int, accumulate: int) -> range:
    """Return the steps of an epoch whose gradients go into the same update as a step's: fewer for the last update."""
    first = step - step % accumulate
    return range(first, min(first + accumulate, steps_per_epoch))


def steps_notes(config: TrainConfig, train_images: int) -> list[str]:
    """Say how many steps a run makes, what to do where its updates are too few, and which settings are idle."""
    steps, batch = number_of_steps(config, train_images), config.images_per_step
    batches, epochs = counted(steps // config.epochs, "batch", "es"), counted(config.epochs, "epoch")
    left = train_images % batch if config.last_batch == "drop" else 0
    out = f", {left} of them left out of each epoch" if left else ""
    updates, unit, of_updates = config.epochs * updates_in(steps // config.epochs, config.accumulate), "step", ""
    if config.accumulate > 1:
        unit = "update"
        of_updates = f", {counted(updates, unit)} of {config.accumulate} steps each"
    notes = [
        f"{train_images:,} training images in {batches} of {batch}{out}: {counted(steps, 'step')} in {epochs}"
        f"{of_updates}"
    ]
    if updates < FEW_STEPS:
        enough = -(-FEW_STEPS * config.epochs // max(updates, 1))
        smaller = f", or a --batch-size below {batch}" if batch > SMALLEST_BATCH else ""
        smaller += ", or a smaller --accumulate" if config.accumulate > 1 else ""
        notes.append(
            f"warning: {counted(updates, unit)} {'is' if updates == 1 else 'are'} few: digits take a hundred, "
            f"photographs several hundred. --epochs {enough} makes {FEW_STEPS}{smaller}"
        )
    if config.crop == "pad" and config.crop_scale != CROP_SCALE:
        notes.append(
            f"warning: --crop-scale {config.crop_scale:g} changes nothing, being of --crop resized: images are cut by "
            "--crop pad"
        )
    return notes + schedule_notes(config)


def learning_rate(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    """Return the learning rate of one update of the weights, before what a part of the network multiplies it by.

    Args:
        config: The schedule and its settings.
        update: Updates done before this one since the start of the run.
        updates_per_epoch: Updates of one epoch: its steps, unless gradients are accumulated.
    """
    before, stretch = settings_at(config, update // updates_per_epoch)
    return _rate_of_stretch(stretch, update - before * updates_per_epoch, updates_per_epoch)


def _rate_of_stretch(config: TrainConfig, update: int, updates_per_epoch: int) -> float:
    total = config.epochs * updates_per_epoch
    if config.schedule == "one-cycle":
        return config.lr * _one_cycle(update, total)
    warmup = config.warmup_epochs * updates_per_epoch
    if update < warmup:
        return config.lr * (update + 1) / math.ceil(warmup)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        first = math.ceil(warmup)
        return config.lr * _cosine(1.0, _LAST, (update - first) / max(total - 1 - first, 1))
    epoch = update // updates_per_epoch
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
