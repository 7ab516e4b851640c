"""Seconds to prepare an image folder, to open what was prepared, and to start training from it.

    python benchmarks/prepare_throughput.py [FOLDER]

FOLDER defaults to 60,000 random 32x32 images in 100 classes, made first. Starting to train is timed from `csham
train`'s entry to the first training step, without compilation, in a process of its own, and split into importing the
libraries and everything else. Appends a row to benchmarks/data/prepare_throughput.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from record import append_rows

IMAGES, CLASSES = 60_000, 100

# Measured in a fresh process; the imports are those of csham's own modules and of all that they pull in.
START = """
import json, sys, time
started = time.perf_counter()
import accelerate, torch, torch._dynamo  # any optimizer of torch's imports its compiler
from csham.data import prepare
from csham.training.config import resolve
from csham.training.interrupt import StopRequest
from csham.training.loop import Loop
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.session import start_session
from pathlib import Path
imported = time.perf_counter()
dataset = prepare(sys.argv[1])
opened = time.perf_counter()
config = resolve({"data": sys.argv[1], "backbone": "resnet20", "compile": False})
session = start_session(config, dataset, RunFolder(Path(sys.argv[2])), QuietProgress())
next(iter(session.train_batches.epoch(0)))
print(json.dumps([imported - started, opened - imported, time.perf_counter() - opened]))
"""


def make_images(folder: Path) -> Path:
    """Write random images as lossless WebP: train with five sixths of them, test with the rest."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        part = "train" if index % 6 else "test"
        path = folder / part / f"class{index % CLASSES:03}" / f"{index}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(path, lossless=True)
    return folder


def environment(cache: Path) -> dict[str, str]:
    """Return this process's environment with another cache folder."""
    return os.environ | {"CSHAM_CACHE": str(cache)}


def prepare_once(data: Path, cache: Path) -> tuple[float, dict[str, Any]]:
    """Run `csham prepare` in a process of its own; return its seconds and what it said."""
    command = [sys.executable, "-m", "csham", "prepare", str(data), "--json", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(cache))
    return time.perf_counter() - started, json.loads(done.stdout)


def start_once(data: Path, cache: Path, folder: Path) -> list[float]:
    """Start training from the prepared cache; return seconds to import, to open, and for the rest."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(data), str(folder / "run")],
        capture_output=True,
        text=True,
        check=True,
        env=environment(cache),
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = args.data or make_images(folder / "images")
        built = [prepare_once(data, folder / f"cache{n}") for n in range(args.rounds)]
        starts = [start_once(data, folder / "cache0", folder) for _ in range(args.rounds)]
    imports, opening, rest = (median(column) for column in zip(*starts, strict=True))
    row = {
        "images": built[0][1]["images"],
        "kind": "given" if args.data else "random",
        "rounds": args.rounds,
        "prepare_s": round(median(seconds for seconds, _ in built), 2),
        "import_s": round(imports, 2),
        "open_s": round(opening, 2),
        "start_s": round(rest, 2),
        "open_and_start_s": round(opening + rest, 2),
    }
    for key, value in row.items():
        print(f"{key:20} {value}")
    print("appended to", append_rows("prepare_throughput", [row]))


if __name__ == "__main__":
    main()
