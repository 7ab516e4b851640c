"""Why gated networks lag in their first hundred steps: the same trainings with gates that start open or half shut.

    python benchmarks/first_steps.py digits --recipe quick [--starts plain,halved,se] [--seeds 5]

A gate that starts at 1/2 halves what a residual branch adds. "halved" and "quartered" do that to the plain network, by
the weight of the last norm of each branch, and attend to nothing; "open" is ``csham.attach(..., open_gates=True)``,
which starts an attention's gates near 1 (by a bias of 3; older rows have 4); "gated" is ``csham.attach(...,
gated=True)``, which starts as the plain network. Test top-1 of the last epoch. Appends rows to
benchmarks/data/first_steps.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
from torch import nn

from csham.data import prepare
from csham.training.config import resolve
from csham.training.loop import train
from csham.training.network import NetworkInfo
from record import append_rows, list_of

Start = Callable[[nn.Module], None]


def as_built(network: nn.Module) -> None:
    """Leave a network as it is."""


def shrink_branches(factor: float) -> Start:
    """Return what multiplies the end of every residual branch of a CIFAR ResNet."""

    @torch.no_grad()
    def shrink(network: nn.Module) -> None:
        for name, module in network.named_modules():
            if name.endswith(".bn2"):
                module.weight *= factor

    return shrink


_SEQUENTIAL = {"attention": "csham", "strategy": "sequential"}
_TRANSFER = {"attention": "csham", "strategy": "transfer"}
STARTS: dict[str, tuple[dict[str, Any], Start]] = {
    "plain": ({}, as_built),
    "halved": ({}, shrink_branches(0.5)),
    "quartered": ({}, shrink_branches(0.25)),
    "se": ({"attention": "se"}, as_built),
    "se open": ({"attention": "se", "open_gates": True}, as_built),
    "sequential": (_SEQUENTIAL, as_built),
    "sequential open": ({**_SEQUENTIAL, "open_gates": True}, as_built),
    "sequential gated": ({**_SEQUENTIAL, "gated": True}, as_built),
    "transfer": (_TRANSFER, as_built),
    "transfer open": ({**_TRANSFER, "open_gates": True}, as_built),
    "transfer gated": ({**_TRANSFER, "gated": True}, as_built),
}


def top1_after(start: Start, given: dict[str, Any], dataset: Any) -> float:
    """Train a network that starts like this and return its test top-1."""
    build = NetworkInfo.build

    def built(*args: Any, **kwargs: Any) -> nn.Module:
        network = build(*args, **kwargs)
        start(network)
        return network

    with mock.patch.object(NetworkInfo, "build", built), tempfile.TemporaryDirectory() as folder:
        return float(train(resolve(given), run=Path(folder) / "run", dataset=dataset)["top1"])


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train every start with every seed and print the averages; return a row for each run."""
    dataset = prepare(args.data, image_size=args.image_size)
    common = {"data": args.data, "backbone": args.backbone, "image_size": args.image_size, "recipe": args.recipe}
    common |= {"compile": False, "precision": args.precision, "device": "cpu"}
    rows = []
    for name in args.starts:
        settings, start = STARTS[name]
        top1 = [top1_after(start, {**common, **settings, "seed": seed}, dataset) for seed in range(args.seeds)]
        print(f"{name:<20}{mean(top1):8.2f} ± {stdev(top1):.2f}   test top-1, {args.seeds} seeds", flush=True)
        told = {
            "data": Path(args.data).name,
            "backbone": args.backbone,
            "recipe": args.recipe,
            "precision": args.precision,
        }
        told["start"] = name
        rows += [told | {"seed": seed, "top1": round(value, 3)} for seed, value in enumerate(top1)]
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an image folder or a data set's name")
    parser.add_argument("--backbone", default="resnet14", help="a CIFAR ResNet")
    parser.add_argument("--starts", type=list_of(STARTS), default=list(STARTS))
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--seeds", type=int, default=5)
    append_rows("first_steps", measure(parser.parse_args()))
