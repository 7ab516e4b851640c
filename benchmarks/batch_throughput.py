"""Time of making training batches, way by way: crops, policies of augmentation, mixing; and of a step on them.

    python benchmarks/batch_throughput.py [--image-size 112] [--batch-size 64] [--threads 1] [--device cuda]

Random pixels in memory; one process, interleaved rounds. On the CPU a time is that of the processor, so that what else
runs on the machine counts little; elsewhere that of the clock. The step is forward and backward of a ResNet-20 up to 64
pixels and of a ResNet-18 above, float32 on a CPU and bf16 elsewhere, not compiled. Appends a row for each way to
benchmarks/data/batch_throughput.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import csham
from csham.data.batches import Batch, Batches
from csham.data.dataset import PackedDataset, stored_side
from record import append_rows

IMAGES, BATCHES = 512, 4
WAYS: dict[str, dict[str, Any]] = {
    "pad": {"crop": "pad"},
    "resized": {"crop": "resized"},
    "resized, trivial": {"crop": "resized", "policy": "trivial"},
    "resized, rand": {"crop": "resized", "policy": "rand"},
    "resized, mixup": {"crop": "resized", "mixup": 0.2},
    "resized, cutmix": {"crop": "resized", "cutmix": 1.0},
}


def make_dataset(image_size: int) -> PackedDataset:
    """Pack random pixels, in memory."""
    rng = np.random.default_rng(0)
    side = stored_side(image_size)
    return PackedDataset(
        name="noise",
        source="noise",
        classes=("a", "b"),
        image_size=image_size,
        images=rng.integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8),
        labels=np.arange(IMAGES) % 2,
        parts=np.zeros(IMAGES, np.uint8),
        sums=np.zeros((IMAGES, 3, 2), np.int64),
        path=Path("nowhere"),
    )


def make_step(image_size: int, device: str) -> Callable[[Batch], None]:
    """Return what goes forward and backward on a batch some times."""
    name = "resnet20" if image_size <= 64 else "resnet18"
    network = csham.create_model(name, num_classes=2, image_size=image_size)
    network = network.to(device).to(memory_format=torch.channels_last)

    def step(batch: Batch) -> None:
        for _ in range(BATCHES):
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                logits = network(batch.images)
            F.cross_entropy(logits.float(), batch.labels).backward()

    return step


def make_batches(batches: Batches, epoch: int) -> None:
    """Make the first batches of an epoch."""
    for index in range(BATCHES):
        batches.batch(epoch, index)


def us_per_image(work: Callable[[], None], args: argparse.Namespace) -> float:
    """Time some batches."""
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    started = clock()
    work()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return 1e6 * (clock() - started) / (BATCHES * args.batch_size)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make batches in all ways in turns; return a row each."""
    csham.retain_memory()  # as training does
    torch.set_num_threads(args.threads)
    given = {"batch_size": args.batch_size, "seed": 0, "mean": [0.5] * 3, "std": [0.25] * 3, "device": args.device}
    dataset = make_dataset(args.image_size)
    ways = {
        name: Batches(dataset, np.arange(IMAGES), augment=True, **given, **settings) for name, settings in WAYS.items()
    }
    ready, step = ways["resized"].batch(0, 0), make_step(args.image_size, args.device)
    times: dict[str, list[float]] = {name: [] for name in (*ways, "step")}
    for epoch in range(args.rounds + 1):  # each with draws of its own; the first warms up
        for name, found in times.items():
            work = partial(step, ready) if name == "step" else partial(make_batches, ways[name], epoch)
            took = us_per_image(work, args)
            if epoch:
                found.append(took)
    return [
        {
            "way": name,
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "device": args.device,
            "rounds": args.rounds,
            "us_per_image_median": round(median(found), 1),
            "us_per_image_lowest": round(min(found), 1),
            "us_per_image_highest": round(max(found), 1),
        }
        for name, found in times.items()
    ]


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    rows = measure(parser.parse_args())
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep="  ")
    print("appended to", append_rows("batch_throughput", rows))


if __name__ == "__main__":
    main()
