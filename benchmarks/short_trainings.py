"""Short trainings evaluated with three kinds of running statistics in attention's batch norms.

    python benchmarks/short_trainings.py digits --recipe quick [--attentions none,se,csham:sequential] [--seeds 5]
    python benchmarks/short_trainings.py FOLDER --recipe fast --batch-size 128 --epochs 15

Test top-1 of every run, last epoch, with statistics that forget their beginning by the momentum alone, as torch's and
the authors' do ("momentum"); with those that csham keeps ("debiased"); and with the average over the training images
under the final weights, which is what both estimate ("anew"). Training never reads running statistics, so that the
weights are the same in all three, and only attention's norms differ. Appends rows to
benchmarks/data/short_trainings.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from csham import ops
from csham.data import PackedDataset, prepare
from csham.data.batches import Batches
from csham.layers.norm import BatchNorm2d
from csham.training.config import TrainConfig, resolve
from csham.training.evaluation import load_network, predict
from csham.training.loop import train
from csham.training.network import NetworkInfo
from csham.training.run_folder import RunFolder
from csham.training.steps import fit_batch
from record import append_rows

KINDS = ("momentum", "debiased", "anew")


@contextmanager
def both_averages() -> Iterator[None]:
    """Let attention's norms keep the statistics by momentum alone beside their own, in buffers of the checkpoint."""
    build, follow = BatchNorm2d.__init__, ops.follow

    def built(norm: Any, channels: int, *args: Any, **settings: Any) -> None:
        build(norm, channels, *args, **settings)
        norm.register_buffer("forgetful_mean", torch.zeros(channels))
        norm.register_buffer("forgetful_var", torch.ones(channels))

    def followed(norm: Any, mean: Tensor, var: Tensor) -> None:
        follow(norm, mean, var)
        if hasattr(norm, "forgetful_mean"):
            norm.forgetful_mean.lerp_(mean.detach().float(), norm.momentum)
            norm.forgetful_var.lerp_(var.detach().float(), norm.momentum)

    places = (ops, ops.attention)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(BatchNorm2d, "__init__", built))
        for place in places:
            stack.enter_context(mock.patch.object(place, "follow", followed))
        yield


def measure_run(config: TrainConfig, dataset: PackedDataset) -> dict[str, float]:
    """Train once and return the top-1 with each kind of statistics."""
    with tempfile.TemporaryDirectory() as folder, both_averages():
        run = RunFolder(Path(folder) / "run")
        top1 = {"debiased": float(train(config, run=run.path, dataset=dataset)["top1"])}
        network, info = load_network(run, "last")
    norms: list[Any] = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    for norm in norms:
        norm.running_mean, norm.running_var = norm.forgetful_mean, norm.forgetful_var
    test = Batches(dataset, dataset.split(config.seed, config.validation).test, augment=False, **_given(config, info))
    top1["momentum"] = predict(network, test.in_order()).accuracies(len(info.classes))["top1"]
    average_anew(network, norms, info, config, dataset)
    top1["anew"] = predict(network, test.in_order()).accuracies(len(info.classes))["top1"]
    return top1


@torch.no_grad()
def average_anew(
    network: nn.Module, norms: list[BatchNorm2d], info: NetworkInfo, config: TrainConfig, dataset: PackedDataset
) -> None:
    """Set the statistics of attention's norms to the average over the training images under the weights as they are."""
    images = dataset.split(config.seed, config.validation).train
    training = Batches(dataset, images, augment=True, last_batch=config.last_batch, **_given(config, info))
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    for epoch in range(5):
        for batch in training.epoch(config.epochs + epoch):
            network(batch.images)


def _given(config: TrainConfig, info: NetworkInfo) -> dict[str, Any]:
    return {"batch_size": config.images_per_step, "seed": config.seed, "mean": info.mean, "std": info.std}


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
            images = len(dataset.split(seed, resolve(given).validation).train)
            config = fit_batch(resolve({**given, "precision": args.precision, "device": "cpu"}), images)
            found.append(measure_run(config, dataset))
            run = {"data": Path(args.data).name, "backbone": args.backbone, "attention": label, "seed": seed}
            run |= {
                "recipe": args.recipe,
                "epochs": config.epochs,
                "batch_size": config.batch_size,
                "precision": config.precision,
            }
            rows += [run | {"statistics": kind, "top1": round(found[-1][kind], 3)} for kind in KINDS]
        print(f"{label:<18}" + "".join(f"{mean(run[kind] for run in found):10.2f}" for kind in KINDS), flush=True)
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
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seeds", type=int, default=5)
    append_rows("short_trainings", measure(parser.parse_args()))
