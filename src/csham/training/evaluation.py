"""Measure a trained network on a part of a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csham.data import PackedDataset, prepare
from csham.data.batches import Batch, Batches
from csham.data.sources import check_there
from csham.data.views import Views
from csham.errors import UserError, unknown_name
from csham.training.checkpoints import answering_weights, load_checkpoint, load_weights
from csham.training.config import TrainConfig
from csham.training.division import rows_of_part, words_on_all
from csham.training.machine import choose
from csham.training.metrics import TOP, Predictions
from csham.training.network import NetworkInfo, held_weights, read_network
from csham.training.progress import QuietProgress
from csham.training.run_folder import DEFAULT, RunFolder, RunWeights, check_choice, weights_of_run
from csham.training.sums import check_unchanged
from csham.training.turns import Turns, drain
from csham.words import some

__all__ = [
    "Answered",
    "Evaluation",
    "Measured",
    "answers",
    "autocast",
    "averaged",
    "check_part",
    "collect_in_turns",
    "evaluate",
    "find_weights",
    "keeps_probabilities",
    "load_network",
    "measure",
    "on_this_machine",
    "predict",
    "predict_in_turns",
]

_PARTS = ("test", "validation", "train", "all")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_PROBABILITIES = 2**28


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        summary: Run, data, part, weights and their epoch, and the metrics
            (:meth:`csham.training.metrics.Predictions.summary`); of part ``"all"`` a ``note`` on which of these images
            the network was trained on.
        classes: Name of each class.
        per_class: Precision, recall, F1 and images of each class.
        confusion: Rows are true classes, columns the classes given.
        predictions: The answer for each image.
        dataset: Holder of the images, by ``predictions.indices``.
    """

    summary: dict[str, Any]
    classes: list[str]
    per_class: list[dict[str, Any]]
    confusion: np.ndarray
    predictions: Predictions
    dataset: PackedDataset

    def errors(self) -> list[dict[str, Any]]:
        """Return the images that were named wrong, the most confident answer first.

        Each has its ``row`` in the dataset, ``image``, its file or what it is called, its ``true`` and its ``given``
        class, and the probabilities of both.
        """
        found = self.predictions
        wrong = np.flatnonzero(~found.hits[:, 0])
        order = wrong[np.lexsort((found.indices[wrong], -found.confidences[wrong]))]
        return [
            {
                "row": int(found.indices[place]),
                "image": self.dataset.path_of(int(found.indices[place])),
                "true": self.classes[found.labels[place]],
                "given": self.classes[found.top[place, 0]],
                "probability": float(found.confidences[place]),
                "probability_of_true": float(np.exp(-found.losses[place])),
            }
            for place in order
        ]


def evaluate(
    run: Path | str,
    data: str | None = None,
    *,
    weights: str | None = None,
    part: str = "test",
    device: str | None = None,
    batch_size: int | None = None,
    tta: bool = False,
    progress: QuietProgress | None = None,
) -> Evaluation:
    """Measure a run's network.

    Args:
        run: The run folder.
        data: A dataset with the same classes; None takes the run's own.
        weights: ``"last"``, those of the last epoch, or ``"best"``, those that the validation part chose; None takes
            the last.
        part: ``"test"``, ``"validation"``, ``"train"`` or ``"all"``; split as the run split its data.
        device: None takes what this machine has.
        batch_size: None takes the run's.
        tta: Average the probabilities of several views of each image (:class:`csham.data.views.Views`).
        progress: Told about the reading of the dataset.

    Raises:
        UserError: The run, its weights or the data cannot be used, or the part would hold other images than the run's.
    """
    check_part(part)
    folder = RunFolder(Path(run))
    config = folder.read_config()
    if data is None:
        check_there(config.data, str(folder.path), "Say where they are now: csham evaluate RUN DATA.")
    held = find_weights(folder, weights)
    network, info = load_network(folder, held.name)
    found = measure(
        Measured(str(folder.path), network, info, held),
        config,
        data,
        lambda dataset: _part(dataset, folder, config, part),
        part=part,
        device=device,
        batch_size=batch_size or config.images_per_step,
        tta=tta,
        progress=progress,
    )
    if part == "all" and (note := words_on_all(found.dataset, folder, config)):
        found.summary["note"] = note
    return found


@dataclass(frozen=True, eq=False)
class Measured:
    """Network that is measured.

    Attributes:
        name: Name of its run or folder.
        network: On the CPU.
        info: Description of it.
        weights: Weights of its run that it has.
    """

    name: str
    network: nn.Module
    info: NetworkInfo
    weights: RunWeights


def measure(
    subject: Measured,
    config: TrainConfig,
    data: str | None,
    choose_images: Callable[[PackedDataset], np.ndarray],
    *,
    part: str,
    device: str | None,
    batch_size: int,
    tta: bool,
    progress: QuietProgress | None,
) -> Evaluation:
    """Measure a network, wherever it is from.

    Args:
        subject: The network.
        config: Settings of how images are read, and of the machine.
        data: A dataset with the same classes; None takes the one of ``config``.
        choose_images: Chooses the images, by their row numbers.
        part: Name of the images chosen.
        device: As in :func:`evaluate`.
        batch_size: Images at a time.
        tta: As in :func:`evaluate`.
        progress: As in :func:`evaluate`.
    """
    progress, info = progress or QuietProgress(), subject.info
    dataset = prepare(
        data or config.data, image_size=info.image_size, max_bad=config.max_bad, progress=progress.preparing
    )
    order = _match_classes(dataset, info)
    indices = choose_images(dataset)
    views = Views(info.image_size, dataset.flip) if tta else None
    config = on_this_machine(config, device)
    network = subject.network.to(config.device).eval()
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    batches = Batches(
        dataset,
        indices,
        batch_size=min(batch_size, len(indices)),
        seed=config.seed,
        mean=info.mean,
        std=info.std,
        augment=False,
        device=config.device,
    )
    with autocast(config.device, config.precision):
        predictions = predict(
            network if views is None else averaged(network, views),
            _with_labels(order, batches.in_order(whole=tta)),
            keep=keeps_probabilities(len(indices), info.num_classes),
        )
    if not np.isfinite(predictions.losses).all():
        raise UserError(
            f"{subject.name} answers with numbers that are not finite, in {config.precision}. Either its "
            f"{subject.weights.name} weights are damaged or the precision does not suffice."
        )
    summary = {
        "run": subject.name,
        "data": dataset.source if data is None else data,
        "part": part,
        **subject.weights.to_dict(),
        **({"tta": str(views)} if views is not None else {}),
        **predictions.summary(info.classes),
    }
    return Evaluation(
        summary,
        info.classes,
        predictions.per_class(info.classes),
        predictions.confusion(info.classes),
        predictions,
        dataset,
    )


def check_part(part: str) -> None:
    """Refuse what is no part of a dataset."""
    if part not in _PARTS:
        raise unknown_name("part", part, _PARTS)


def find_weights(folder: RunFolder, name: str | None) -> RunWeights:
    """Return which weights of a run are meant, and of which epoch they are.

    Args:
        folder: The run.
        name: ``"last"``, ``"best"``, or None for the last, or for what there is where checkpoints were removed.

    Raises:
        UserError: The folder is no run, or the choice none.
    """
    folder.check_run()
    check_choice(name)
    if name is None and not folder.last.is_file() and folder.weights.is_file():
        name = held_weights(folder.weights).name
    return weights_of_run(folder, name or DEFAULT)


def load_network(folder: RunFolder, weights: str = DEFAULT) -> tuple[nn.Module, NetworkInfo]:
    """Build a run's network and load its weights, on the CPU.

    Args:
        folder: The run.
        weights: ``"last"`` or ``"best"``.
    """
    folder.check_run()
    check_choice(weights)
    # Before its end, what a run did last is in its checkpoint.
    ended = folder.weights.is_file() and (folder.finished or weights == "best")
    if ended:
        checkpoint = f"checkpoints/{weights}.ckpt"
        there = (folder.path / checkpoint).is_file()
        check_unchanged(
            folder.weights, f"Without it, they are read from {checkpoint}." if there else "Put back a copy of it."
        )
    if ended and held_weights(folder.weights).name == weights:
        return read_network(folder.weights)
    path = folder.best if weights == "best" else folder.last
    content = load_checkpoint(path, ("network", "model"))
    info, values = NetworkInfo.from_dict(content["network"], path), answering_weights(content)
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no weights.")
    network = info.rebuild()
    load_weights(network, values, f"{path} does not fit {info.backbone} with attention {info.attention}")
    return network, info


def averaged(network: nn.Module, views: Views) -> Callable[[Tensor], Tensor]:
    """Return the function from stored squares to the logarithms of the mean probabilities of their views.

    These are logits: their softmax is the mean. The network is in evaluation mode, or will be.
    """

    def answer(squares: Tensor) -> Tensor:
        logs = [
            network(view.contiguous(memory_format=torch.channels_last)).float().log_softmax(1)
            for view in views.cut(squares)
        ]
        return torch.stack(logs).logsumexp(0) - math.log(len(views))

    return answer


def keeps_probabilities(images: int, classes: int) -> bool:
    """Return True if all probabilities of so many images take no more than a gigabyte."""
    return images * classes <= _MOST_PROBABILITIES


def predict(network: Callable[[Tensor], Tensor], batches: Iterable[Batch], *, keep: bool = False) -> Predictions:
    """Run a network over batches and keep its first five answers.

    Args:
        network: Put into evaluation mode if it is a module.
        batches: Images, labels and which images they are; only the first ``count`` of each batch are real.
        keep: Keep the probabilities of all classes too.
    """
    return drain(predict_in_turns(network, batches, keep=keep))


@torch.no_grad()  # but not while others have their turn
def predict_in_turns(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    give_way: Callable[[int], Turns[None]] | None = None,
    keep: bool = False,
) -> Turns[Predictions]:
    """Run a network over batches as :func:`predict` does, and give way after each.

    Args:
        network: As in :func:`predict`.
        batches: Likewise.
        gather: Collects the rows of all processes; rows with a negative index are dropped.
        give_way: Gives way, told how many images there were; None does not.
        keep: As in :func:`predict`.
    """
    if isinstance(network, nn.Module):
        network.eval()
    answered = (
        (batch.indices, batch.count, answers(network(batch.images), batch.labels, keep=keep)) for batch in batches
    )
    return (yield from collect_in_turns(answered, gather=gather, give_way=give_way))


Answered: TypeAlias = tuple[np.ndarray, int, list[Tensor]]
"""Rows of a batch, how many of them are real, and its :func:`answers`."""


@torch.no_grad()  # but not while others have their turn
def collect_in_turns(
    answered: Iterable[Answered],
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    give_way: Callable[[int], Turns[None]] | None = None,
) -> Turns[Predictions]:
    """Put the answers to batches together, and give way after each.

    Args:
        answered: The answers.
        gather: As in :func:`predict_in_turns`.
        give_way: Likewise.
    """
    parts = []
    for indices, count, columns in answered:
        parts.append([column[:count] for column in (torch.from_numpy(indices), *columns)])
        if give_way is not None:
            yield from give_way(len(indices))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if gather is not None:
        columns = [gather(column) for column in columns]
    indices, *others = (column.cpu().numpy() for column in columns)
    real = indices >= 0
    return Predictions(indices[real], *(column[real] for column in others))


def autocast(device: str, precision: str) -> torch.autocast:
    """Compute in ``"bf16"`` or ``"fp16"`` where torch considers it safe; ``"fp32"`` changes nothing."""
    return torch.autocast(torch.device(device).type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def on_this_machine(config: TrainConfig, device: str | None) -> TrainConfig:
    """Choose device and memory format for evaluating, and keep the run's precision on the same kind of device.

    Args:
        config: The run's settings.
        device: None takes what this machine has.
    """
    asked = replace(config, device=device or "auto", precision="auto", compile=False, graph=False, channels_last="auto")
    chosen = choose(asked, 0).config
    same_kind = chosen.device.partition(":")[0] == config.device.partition(":")[0]
    return replace(chosen, precision=config.precision) if same_kind else chosen


def answers(logits: Tensor, labels: Tensor, *, keep: bool) -> list[Tensor]:
    """Return the columns of :class:`Predictions` but the first: a function of tensors alone.

    Args:
        logits: (B, classes).
        labels: (B,) int64.
        keep: Keep the probabilities of all classes too.
    """
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    top = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    probabilities = logits.softmax(1)
    confidences, true = (probabilities.gather(1, one)[:, 0] for one in (top[:, :1], labels[:, None]))
    distances = probabilities.square().sum(1) - 2 * true + 1
    return [labels, top, losses, confidences, distances, *([probabilities] if keep else [])]


def _match_classes(dataset: PackedDataset, info: NetworkInfo) -> np.ndarray:
    """Return the network's class number of each of the dataset's classes."""
    expected, there = set(info.classes), set(dataset.classes)
    if expected != there:
        missing, extra = sorted(expected - there), sorted(there - expected)
        wrong = {"lacks": missing, "has the unknown": extra}
        parts = [f"{how} {some(map(repr, names))}" for how, names in wrong.items() if names]
        raise UserError(
            f"the classes of {dataset.source} are not the run's {len(expected)}: it {' and '.join(parts)}. "
            "Classes are matched by name."
        )
    return np.array([info.classes.index(name) for name in dataset.classes])


def _with_labels(order: np.ndarray, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Give batches the network's numbers of their classes."""
    for batch in batches:
        yield batch._replace(labels=torch.from_numpy(order).to(batch.labels.device)[batch.labels])


def _part(dataset: PackedDataset, folder: RunFolder, config: TrainConfig, part: str) -> np.ndarray:
    if part == "all":
        return np.arange(len(dataset.labels))
    try:
        return rows_of_part(dataset, folder, config, part)
    except UserError as err:
        raise UserError(f"{err} --part all measures all images, those that it was trained on too.") from err
