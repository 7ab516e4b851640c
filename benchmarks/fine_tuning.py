"""Optimizers, rates and freezing for fine-tuning, compared by the top-1 of images held out of the training part.

    python benchmarks/fine_tuning.py FOLDER --weights-file RUN/model.safetensors [--variants adamw-3e-4,...] [--seeds 2]

Every variant is the same network from the same weights, with the same batches, on a cosine with a warm-up of one epoch;
"scratch" is one cycle from new weights. 40% of the training part are held out to compare by; the test part is not
looked at. Appends rows to benchmarks/data/fine_tuning.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from csham.data import PackedDataset, prepare
from csham.training.config import TrainConfig, resolve
from csham.training.loop import train
from csham.training.run_folder import RunFolder
from record import append_rows, list_of

ADAMW = {"optimizer": "adamw", "weight_decay": 0.05}
SGD = {"optimizer": "sgd", "weight_decay": 1e-4}


def rates(settings: dict[str, Any], rate: float, new: float | None = None, **more: Any) -> dict[str, Any]:
    """Give what has weights one rate, and what is new another, or the same."""
    return {**settings, "lr": new or rate, "backbone_lr": rate, **more}


VARIANTS: dict[str, dict[str, Any]] = {
    "scratch": {"recipe": "quick"},
    "sgd-0.01": rates(SGD, 0.01),
    "sgd-0.03": rates(SGD, 0.03),
    "sgd-0.1": rates(SGD, 0.1),
    "sgd-0.01-new-0.1": rates(SGD, 0.01, 0.1),
    "sgd-0.03-new-0.1": rates(SGD, 0.03, 0.1),
    "adamw-3e-4": rates(ADAMW, 3e-4),
    "adamw-1e-3": rates(ADAMW, 1e-3),
    "adamw-3e-3": rates(ADAMW, 3e-3),
    "adamw-3e-4-new-3e-3": rates(ADAMW, 3e-4, 3e-3),
    "adamw-1e-3-new-3e-3": rates(ADAMW, 1e-3, 3e-3),
    "adamw-1e-3-new-1e-2": rates(ADAMW, 1e-3, 1e-2),
}
CHANGES: dict[str, dict[str, Any]] = {
    "frozen-1": {"freeze_backbone": 1},
    "frozen-3": {"freeze_backbone": 3},
    "frozen": {"freeze_backbone": 1000},
    "ema": {"ema": 0.99},
    "layers": {"layer_decay": 0.9},
    "clip": {"clip_norm": 1.0},
    "smooth": {"label_smoothing": 0.1},
    "open": {"gated": False},
}
VARIANTS |= {f"{name}+{change}": VARIANTS[name] | CHANGES[change] for name in list(VARIANTS) for change in CHANGES}


def config_of(args: argparse.Namespace, variant: str, seed: int) -> TrainConfig:
    """Put a run's settings together."""
    given = {"data": args.data, "backbone": args.backbone, "image_size": args.image_size, "epochs": args.epochs}
    given |= {"attention": args.attention, "seed": seed, "compile": False, "device": "cpu", "validation": 0.4}
    given |= {"batch_size": args.batch_size, "precision": args.precision, "checkpoint_seconds": 3600.0}
    if "recipe" in VARIANTS[variant]:
        return resolve(given | VARIANTS[variant])
    given |= {"recipe": "finetune", "weights_file": args.weights_file, "warmup_epochs": 1.0, "label_smoothing": 0.0}
    plain = {"freeze_backbone": 0, "head_lr": None, "attention_lr": None, "ema": None, "clip_norm": None}
    return resolve(given | {"schedule": "cosine", "layer_decay": 1.0} | plain | VARIANTS[variant])


def measure(args: argparse.Namespace, variant: str, seed: int, dataset: PackedDataset) -> dict[str, Any]:
    """Train once; return a row."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        train(config_of(args, variant, seed), run=run.path, dataset=dataset)
        last = run.read_metrics()[-1]
    where = {"data": Path(args.data).name, "backbone": args.backbone, "attention": args.attention}
    return {
        **where,
        "weights": Path(args.weights_file).parent.name,
        "image_size": args.image_size,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "variant": variant,
        "seed": seed,
        "validation_top1": last["val_top1"],
        "validation_loss": last["val_loss"],
        "train_loss": last["train_loss"],
        "seconds": round(last["seconds"] or 0.0, 1),
    }


def main() -> None:
    """Read the command line, measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights-file", required=True)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--attention", default="se")
    parser.add_argument("--variants", type=list_of(VARIANTS), default=[name for name in VARIANTS if "+" not in name])
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    dataset = prepare(args.data, image_size=args.image_size)
    for variant in args.variants:
        rows = [measure(args, variant, seed, dataset) for seed in args.seeds]
        append_rows("fine_tuning", rows)
        tops, losses = ([row[name] for row in rows] for name in ("validation_top1", "validation_loss"))
        print(f"{variant:<28}{mean(tops):>8.2f}{mean(losses):>9.3f}   {len(rows)} seeds", flush=True)


if __name__ == "__main__":
    main()
