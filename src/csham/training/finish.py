"""The end of a run: measure on the test part, and write the weights, the numbers and the picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from csham.backbones.spec import NETWORK_FIELDS
from csham.cost import count_flops
from csham.data.dataset import describe_data
from csham.data.duplicates import find_duplicates
from csham.files import write_atomically
from csham.training.checkpoints import answering_weights, load_checkpoint, load_weights
from csham.training.config import TrainConfig
from csham.training.course import settings_at, stopped_early, words_on_course
from csham.training.division import drawn_parts
from csham.training.metrics import METRICS, Predictions
from csham.training.network import write_weights
from csham.training.run_folder import RunFolder, RunWeights
from csham.training.session import Session, State
from csham.training.turns import Turns

__all__ = ["finish"]


def finish(session: Session, state: State, predict: Callable[[str, bool], Turns[Predictions]]) -> Turns[dict[str, Any]]:
    """Measure the last and the chosen weights, and complete the run folder.

    Args:
        session: Session that the run worked with.
        state: After the last epoch.
        predict: Lets the network answer a part of the data, and keeps all probabilities where asked to.

    Returns:
        Contents of summary.json.
    """
    classes, folder = session.info.classes, session.folder
    last = yield from predict("test", True)
    if session.is_main:
        weights = session.answering_network.state_dict()
        write_weights(folder.weights, weights, session.info, RunWeights("last", state.epoch))
    chosen = last
    if state.best["epoch"] != state.epoch:
        _load_best(session)
        chosen = yield from predict("test", True)
    summary = _summary(session, state, last.summary(classes), chosen.summary(classes))
    if session.is_main:
        folder.write_confusion(classes, last.confusion(classes).tolist())
        _draw_curves(folder, state.history)
        folder.write_json("summary.json", summary)
        folder.settle()
    session.accelerator.wait_for_everyone()
    return summary


def _load_best(session: Session) -> None:
    """Load the chosen weights, in the main process, which wrote them; the others may run on other machines."""
    path = session.folder.best
    if session.is_main:
        best = answering_weights(load_checkpoint(path, ("model",)))
        load_weights(session.answering_network, best, f"{path} does not fit the run")
    if session.accelerator.num_processes > 1:
        for value in session.answering_network.state_dict().values():
            torch.distributed.broadcast(value, src=0)


def _summary(session: Session, state: State, last: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    config, history = session.config, state.history
    names = ("data", *NETWORK_FIELDS, "recipe", "epochs", "seed")
    flops = count_flops(session.network, (3, session.info.image_size, session.info.image_size))
    seconds = sum(row["seconds"] for row in history)
    validated = history[-1]["val_top1"] is not None
    same = find_duplicates(session.dataset)
    summary = {
        "run": str(session.folder.path),
        **{name: getattr(config, name) for name in names},
        **_course(config, state),
        "weights": "last epoch" if config.ema is None else f"last epoch, averaged with a decay of {config.ema:g}",
        **last,
        "validation_chosen": {
            "epoch": state.best["epoch"],
            "validation_top1": state.best["value"] if validated else None,
            "chosen_by": "validation top-1" if validated else "nothing: there is no validation part, so the last epoch",
            **chosen,
        },
        "params": sum(p.numel() for p in session.network.parameters()),
        "flops": flops.total,
        "flops_matmul": flops.matmul,
        "seconds": round(seconds, 3),
        "images_per_s": round(_training_rate(history), 2),
        "classes": len(session.info.classes),
        "train_images": len(session.parts.train),
        "validation_images": len(session.parts.validation),
        "bad_files": len(session.dataset.bad_files),
        "data_fingerprint": describe_data(session.dataset)["fingerprint"],
        "drawn_parts": drawn_parts(session.dataset, config),
        "test_images_trained_with": len(same.also_in(session.parts.test, session.parts.train)),
        # Apart from the metrics, one of which is called precision too.
        "machine": {name: getattr(config, name) for name in ("device", "precision", "compile")},
    }
    if config.track_test:
        best = max(history, key=lambda row: row["test_top1"])
        summary["best_test_epoch_not_for_choosing"] = {"epoch": best["epoch"], "top1": best["test_top1"]}
    return summary


def _course(config: TrainConfig, state: State) -> dict[str, Any]:
    """Return the epochs that were done, and where these are not simply the planned ones, what became of the plan."""
    early = stopped_early(config, state.epoch, state.best)
    planned = {"planned": config.epochs, "patience": settings_at(config, state.epoch)[1].patience}
    return {
        "epochs": state.epoch,
        **({"stopped_early": planned} if early else {}),
        **({"course": words_on_course(config, state.epoch)} if early or config.continued else {}),
    }


def _training_rate(history: Sequence[Mapping[str, Any]]) -> float:
    """Return images per second of training, over all epochs of the same number of images."""
    return len(history) / sum(1 / row["images_per_s"] for row in history)


def _draw_curves(folder: RunFolder, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and top-1 of every part, over the epochs."""
    # Imported here: it takes seconds, which the first step need not wait for.
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    loss, top1 = METRICS["loss"], METRICS["top1"]
    labels = {loss.name: loss.with_unit(loss.label), top1.name: top1.with_unit(top1.title)}
    for axes, (measure, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for part, name in (("train", "training"), ("val", "validation"), ("test", "test (never chosen by)")):
            values = [row.get(f"{part}_{measure}") for row in history]
            if values[0] is not None:
                axes.plot(epochs, values, label=name, marker="." if len(epochs) < 20 else None)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(folder.path / "curves.png", lambda file: file.write(picture.getvalue()))
