"""Short trainings evaluated with three kinds of running statistics in attention's batch norms.

    python benchmarks/short_trainings.py digits --recipe quick [--attentions none,se,csham:sequential] [--seeds 5]
    python benchmarks/short_trainings.py FOLDER --recipe fast --batch-size 128 --epochs 15

Test top-1 of every run, last epoch, with statistics that forget their beginning by the momentum alone, as torch's and the
authors' do ("momentum"); with those that csham keeps ("debiased"); and with the average over the training images under
the final weights, which is what both estimate ("anew"). Training never reads running statistics, so that the weights
are the same in all three, and only attention's norms differ. Appends rows to benchmarks/data/short_trainings.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from csham.data import PackedDataset, prepare
from csham.data.batches import Batches
from csham.layers.norm import BatchNorm2d
from csham.training.config import TrainConfig, resolve
from csham.training.evaluation import load_network, predict
from csham.training.loop import train
from csham.training.network import NetworkInfo
from csham.training.run_folder import RunFolder
from record import append_rows


def by_momentum(norm: BatchNorm2d) -> Tensor:
    """Return the rate of torch's batch norm, whatever was counted."""
    return torch.tensor(norm.momentum)


@contextmanager
def averaging(rate: Any) -> Iterator[None]:
    """Let attention's norms average by another rate."""
    with mock.patch.object(BatchNorm2d, "averaging_rate", rate):
        yield


def measure_run(config: TrainConfig, dataset: PackedDataset) -> dict[str, float]:
    """Train twice, alike but for the running statistics, and return the top-1 with each kind of them."""
    top1 = {}
    for kind, rate in (("momentum", by_momentum), ("debiased", BatchNorm2d.averaging_rate)):
        with tempfile.TemporaryDirectory() as folder, averaging(rate):
            run = RunFolder(Path(folder) / "run")
            top1[kind] = train(config, run=run.path, dataset=dataset)["top1"]
            network, info = load_network(run, "last")
    top1["anew"] = with_statistics_anew(network, info, config, dataset)
    return top1


def with_statistics_anew(
    network: nn.Module, info: NetworkInfo, config: TrainConfig, dataset: PackedDataset
) -> float:
    """Average the statistics of attention's norms over the training images, and return the test top-1."""
    parts = dataset.split(config.seed, config.validation)
    settings: dict[str, Any] = {"seed": config.seed, "mean": info.mean, "std": info.std}
    training = Batches(dataset, parts.train, batch_size=config.batch_size, augment=True, **settings)
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    with torch.no_grad():
        for epoch in range(5):
            for batch in training.epoch(config.epochs + epoch):
                network(batch.images)
    test = Batches(dataset, parts.test, batch_size=config.batch_size, augment=False, **settings)
    return predict(network, test.in_order()).accuracies(len(info.classes))["top1"]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train every attention with every seed and print the averages; return a row for each run and kind."""
    dataset = prepare(args.data, image_size=args.image_size)
    rows = []
    print(f"{'attention':<18}{'momentum':>10}{'debiased':>10}{'anew':>10}   test top-1, mean of {args.seeds} seeds")
    for label in args.attentions.split(","):
        attention, _, strategy = label.partition(":")
        found = []
        for seed in range(args.seeds):
            given = {"data": args.data, "backbone": args.backbone, "image_size": args.image_size, "recipe": args.recipe}
            given |= {"attention": attention, "strategy": strategy or "sequential", "seed": seed, "compile": False}
            given |= {name: getattr(args, name) for name in ("epochs", "batch_size", "lr") if getattr(args, name)}
            config = resolve({**given, "precision": "fp32", "device": "cpu"})
            found.append(measure_run(config, dataset))
            known = {"data": Path(args.data).name, "backbone": args.backbone, "attention": label, "seed": seed}
            settings = {"recipe": args.recipe, "epochs": config.epochs, "batch_size": config.batch_size}
            rows += [known | settings | {"statistics": kind, "top1": round(top1, 3)} for kind, top1 in found[-1].items()]
        means = [mean(run[kind] for run in found) for kind in ("momentum", "debiased", "anew")]
        print(f"{label:<18}" + "".join(f"{value:10.2f}" for value in means), flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an image folder or a data set's name")
    parser.add_argument("--backbone", default="resnet14")
    parser.add_argument("--attentions", default="none,se,cbam,csham:sequential,csham:transfer")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, default=5)
    append_rows("short_trainings", measure(parser.parse_args()))
