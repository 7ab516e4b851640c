"""Images/s of making training batches: plain shifted crops against resampled boxes, in interleaved rounds.

    python benchmarks/crop_throughput.py [--image-size 112] [--batch-size 64] [--threads 2]

Random pixels in memory; one process. Appends two rows to benchmarks/data/crop_throughput.csv.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import csham
from csham.data.batches import Batches
from csham.data.dataset import PackedDataset, stored_side
from record import append_rows

IMAGES, BATCHES = 512, 8


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


def images_per_s(batches: Batches) -> float:
    """Make the first batches of an epoch."""
    started = time.perf_counter()
    for index in range(BATCHES):
        batches.batch(0, index)
    return BATCHES * batches.batch_size / (time.perf_counter() - started)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make batches both ways in turns; return a row each."""
    csham.retain_memory()  # as training does
    torch.set_num_threads(args.threads)
    settings = {"batch_size": args.batch_size, "seed": 0, "mean": [0.5] * 3, "std": [0.25] * 3, "augment": True}
    dataset = make_dataset(args.image_size)
    ways = {crop: Batches(dataset, np.arange(IMAGES), crop=crop, **settings) for crop in ("pad", "resized")}
    speeds: dict[str, list[float]] = {crop: [] for crop in ways}
    for round_number in range(args.rounds + 1):
        for crop, batches in ways.items():
            speed = images_per_s(batches)
            if round_number:  # the first round warms up
                speeds[crop].append(speed)
    return [
        {
            "crop": crop,
            "image_size": args.image_size,
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "images_per_s_median": round(median(found)),
            "images_per_s_lowest": round(min(found)),
            "images_per_s_highest": round(max(found)),
        }
        for crop, found in speeds.items()
    ]


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    rows = measure(parser.parse_args())
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep="  ")
    print("appended to", append_rows("crop_throughput", rows))


if __name__ == "__main__":
    main()
