"""The training loss against its formula, one image and one class at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from csham.data.batches import Batch
from csham.training.config import TrainConfig
from csham.training.losses import TrainingLoss, balanced_weights

CLASSES = ("a", "b", "c")
LABELS = np.array([0] * 6 + [1] * 3 + [2])


def loss_of(labels=LABELS, **settings):
    return TrainingLoss.of(TrainConfig(data="-", **settings), labels, CLASSES, torch.device("cpu"))


def batch_of(labels, mixed=False):
    labels = torch.as_tensor(labels)
    one_hot = F.one_hot(labels, 3).float()
    targets = 0.7 * one_hot + 0.3 * one_hot.flip(0) if mixed else None
    return Batch(torch.zeros(len(labels), 3, 1, 1), labels, len(labels), np.arange(len(labels)), targets)


def logits_of(count):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()


def by_hand(logits, batch, smoothing, weights):
    """Mean over images of their shares' losses, each weighed."""
    total = 0.0
    for row, label, index in zip(logits.tolist(), batch.labels.tolist(), batch.indices, strict=True):
        shares = {label: 1.0} if batch.targets is None else dict(enumerate(batch.targets[index].tolist()))
        logs = [value - math.log(sum(map(math.exp, row))) for value in row]
        for name, share in shares.items():
            target = [(1 - smoothing) * (name == other) + smoothing / 3 for other in range(3)]
            total -= share * weights[name] * sum(t * log for t, log in zip(target, logs, strict=True))
    return total / len(batch.labels)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_loss_is_the_mean_of_what_its_images_weigh(mixed, smoothing, class_weights):
    loss, batch = loss_of(label_smoothing=smoothing, class_weights=class_weights), batch_of(LABELS, mixed)
    logits = logits_of(len(LABELS))
    weights = [10 / 18, 10 / 9, 10 / 3] if class_weights == "balanced" else [1, 1, 1]
    found = loss(logits, batch.labels, batch.targets)
    assert found.item() == pytest.approx(by_hand(logits, batch, smoothing, weights), rel=1e-5)
    found.backward()
    assert logits.grad.isfinite().all()


def test_without_weights_it_has_the_bits_of_torchs():
    logits = logits_of(10)
    expected = F.cross_entropy(logits, torch.as_tensor(LABELS), label_smoothing=0.1)
    assert torch.equal(loss_of(label_smoothing=0.1)(logits, batch_of(LABELS).labels), expected)


def test_balanced_every_class_counts_alike():
    logits, batch = logits_of(10), batch_of(LABELS)
    each = F.cross_entropy(logits, batch.labels, reduction="none")
    expected = torch.stack([each[batch.labels == number].mean() for number in range(3)]).mean()
    torch.testing.assert_close(loss_of(class_weights="balanced")(logits, batch.labels), expected)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(mixed):
    """So that it does not depend on the number of processes."""
    logits, batch = logits_of(10), batch_of(LABELS, mixed)
    loss = loss_of(class_weights="balanced", label_smoothing=0.2)
    halves = [
        loss(logits[part], batch.labels[part], batch.targets[part] if mixed else None)
        for part in (slice(0, 5), slice(5, 10))
    ]
    torch.testing.assert_close(sum(halves) / 2, loss(logits, batch.labels, batch.targets))


def test_the_weights_are_scikit_learns():
    np.testing.assert_allclose(
        balanced_weights(LABELS, 3), compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    )
    np.testing.assert_array_equal(balanced_weights(np.array([0, 2, 2, 0]), 3), [1, 1, 1])  # one class has none
    assert loss_of(class_weights="balanced").notes == ("class weights from 0.556 (a) to 3.33 (c)",)
