"""A step of training as a function of tensors: what the loop calls is what a CUDA graph replays.

Nothing in it reads a number back, or depends on one that changes from step to step: learning rates, and how fast an
average of the weights follows, are tensors.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from csham.training.optimizer import rates_at, set_rates
from csham.training.session import Session
from csham.training.steps import learning_rate, updates_in

__all__ = ["Step", "Steps", "rates_of_step", "seed_step"]


class Step:
    """Changes a network, its optimizer's state, its average and the sums of an epoch, all in place.

    Args:
        session: Session of the run.
        sums: Loss, top-1 hits, top-5 hits and images, each summed over steps, (4,).
    """

    def __init__(self, session: Session, sums: Tensor) -> None:
        self._session, self._sums = session, sums

    def add_gradients(self, images: Tensor, labels: Tensor, targets: Tensor | None, steps: int, *, last: bool) -> None:
        """Add the gradients of a batch, and what it is counted as.

        Args:
            images: (B, 3, S, S) float32.
            labels: (B,) int64.
            targets: Share of each class in each image, (B, classes) float32; None if they are not mixed.
            steps: Number of batches whose gradients are averaged for an update.
            last: True if it is the last of them.
        """
        session = self._session
        with nullcontext() if last else session.accelerator.no_sync(session.model):
            logits = session.model(images)
            loss = session.loss(logits, labels, targets)
            session.accelerator.backward(loss if steps == 1 else loss / steps)
        self._sums += _measures(loss.detach(), logits.detach(), labels)

    def update(self, rates: Tensor) -> None:
        """Change the weights by the gradients that there are.

        Args:
            rates: Of :func:`rates_of_step`.
        """
        session = self._session
        *of_groups, share = rates.unbind()
        set_rates(session.optimizer, of_groups)
        if session.config.clip_norm is not None:
            session.accelerator.clip_grad_norm_(session.network.parameters(), session.config.clip_norm)
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)
        if session.average is not None:
            session.average.update(session.network, share)


class Steps:
    """Steps of a run, one after the other as they come, on every device.

    Args:
        session: Session of the run.
        sums: As in :class:`Step`.
    """

    def __init__(self, session: Session, sums: Tensor) -> None:
        self._session, self._step = session, Step(session, sums)

    def run(self, epoch: int, steps: range, together: int) -> None:
        """Train with batches of one update of the weights, and do it.

        Args:
            epoch: From 0.
            steps: Of the epoch.
            together: Number of steps of the update.
        """
        session = self._session
        for step in steps:
            batch = session.train_batches.batch(epoch, step)
            seed_step(session, epoch, step)
            last = step == steps[-1]
            self._step.add_gradients(batch.images, batch.labels, batch.targets, together, last=last)
        rates = rates_of_step(session, epoch, steps[-1])
        # On the host, where torch reads them without waiting for a device.
        self._step.update(torch.tensor(rates, dtype=torch.float64))
        set_rates(session.optimizer, rates[:-1])  # numbers, as a checkpoint has them


def rates_of_step(session: Session, epoch: int, step: int) -> list[float]:
    """Return the learning rates of a step's update, of each group of parameters, and its share in the average.

    Args:
        session: Session of the run.
        epoch: From 0.
        step: Of the epoch, from 0.
    """
    config = session.config
    per_epoch = updates_in(len(session.train_batches), config.accumulate)
    update = epoch * per_epoch + step // config.accumulate
    rate = learning_rate(config, update, per_epoch)
    share = 0.0 if session.average is None else session.average.share_of(update + 1)
    return [*rates_at(session.optimizer, rate), share]


def seed_step(session: Session, epoch: int, step: int) -> None:
    """Seed what dropout and the like draw from, so that no generator's state needs to be kept."""
    words = (session.config.seed, epoch, step, session.accelerator.process_index)
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    # torch.manual_seed also tells devices that nobody uses, which takes longer than many a step.
    torch.default_generator.manual_seed(seed)
    device = session.accelerator.device
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _measures(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Return a batch's summed loss, top-1 hits, top-5 hits and images, without leaving the device."""
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    count = torch.full_like(loss, len(labels))
    return torch.stack([loss * count, hits[:, 0].sum().to(loss), hits.sum().to(loss), count])
