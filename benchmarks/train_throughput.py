"""Images/s of `csham train` against a bare loop over the same network and ready-made batches.

    python benchmarks/train_throughput.py [--backbone resnet20] [--attention none] [--no-compile] [--data FOLDER]

Both train the same compiled network in one process, in interleaved rounds; the share is the median over rounds of
their ratio. Without --data, images of random pixels in CIFAR-100's size and number of classes are made. Appends a row
to benchmarks/data/train_throughput.csv.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image

import csham
from csham.data import prepare
from csham.training.config import resolve
from csham.training.interrupt import StopRequest
from csham.training.loop import Loop
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.session import Session, start_session
from csham.training.turns import drain
from record import append_rows

CLASSES, BATCH = 100, 128


def make_images(folder: Path, count: int) -> Path:
    """Write random 32x32 images, CIFAR-100's size and number of classes, as an image folder."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / "train" / f"class{index % CLASSES:03}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def bare_loop(session: Session, steps: int) -> Any:
    """Return a function that trains `steps` batches which are ready on the device, with nothing around."""
    model, optimizer = session.model, session.optimizer
    batches = [session.train_batches.batch(0, k) for k in range(steps)]

    def run() -> float:
        started = time.perf_counter()
        for batch in batches:
            loss = F.cross_entropy(model(batch.images), batch.labels)
            session.accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return steps * BATCH / (time.perf_counter() - started)

    return run


def csham_loop(loop: Loop, steps: int) -> Any:
    """Return a function that trains `steps` batches as `csham train` does."""

    def run() -> float:
        loop.state.step = 0
        loop.state.seconds = 0.0
        started = time.perf_counter()
        drain(loop._train_epoch())
        return steps * BATCH / (time.perf_counter() - started)

    return run


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both in turns; return the row."""
    # A fifth becomes the test part and a tenth of the rest the validation part.
    data = args.data or make_images(folder / "images", round(args.steps * BATCH / 0.7) + 2 * BATCH)
    dataset = prepare(str(data), cache_dir=folder / "cache")
    asked = {"data": str(data), "backbone": args.backbone, "attention": args.attention, "recipe": "fast"}
    if args.attention != "none":
        asked["strategy"] = args.strategy
    settings = resolve(asked | {"compile": args.compile, "precision": args.precision, "batch_size": BATCH})
    session = start_session(settings, dataset, RunFolder(folder / "run"), QuietProgress())
    session.train_batches.indices = session.train_batches.indices[: args.steps * BATCH]
    (folder / "run" / "checkpoints").mkdir(parents=True)
    loop = Loop(session, session.new_state(), StopRequest(lambda: None))
    loop._warm_up()
    session.model.train()
    runs = {"csham": csham_loop(loop, args.steps), "bare": bare_loop(session, args.steps)}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(args.rounds + 1):
        for name, run in runs.items():
            speed = run()
            if round_number:  # the first round warms up
                speeds[name].append(speed)
    shares = [a / b for a, b in zip(speeds["csham"], speeds["bare"], strict=True)]
    return {
        "backbone": args.backbone,
        "attention": args.attention,
        "batch_size": BATCH,
        "precision": session.config.precision,
        "compile": session.config.compile,
        "rounds": args.rounds,
        "steps_per_round": args.steps,
        "csham_images_per_s": round(median(speeds["csham"]), 1),
        "bare_images_per_s": round(median(speeds["bare"]), 1),
        "share_median": round(median(shares), 3),
        "share_lowest": round(min(shares), 3),
        "share_highest": round(max(shares), 3),
    }


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--attention", default="none")
    parser.add_argument("--strategy", default="transfer")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    csham.retain_memory()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(args, Path(folder))
    for name, value in row.items():
        print(f"{name:20} {value}")
    print("appended to", append_rows("train_throughput", [row]))


if __name__ == "__main__":
    main()
