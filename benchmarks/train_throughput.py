"""Images/s of `csham train` against a bare loop over the same network and ready-made batches.

    python benchmarks/train_throughput.py [--backbone resnet20] [--attention none] [--no-compile] [--data FOLDER]
    python benchmarks/train_throughput.py --device cuda --no-compile

Both train the same network in one process, in interleaved rounds; the share is the median over rounds of their ratio.
On a GPU both replay CUDA graphs: csham its own, whose batches are cut within, the bare loop one of a step that was
written by hand, to which ready batches are copied. Without --data, images of random pixels in CIFAR-100's size and
number of classes are made. Appends a row to benchmarks/data/train_throughput.csv. ``--device cpu --tiny --no-record``
walks through it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import csham
from csham.data import prepare
from csham.training.config import resolve
from csham.training.interrupt import StopRequest
from csham.training.loop import Loop
from csham.training.machine import choose_device
from csham.training.progress import QuietProgress
from csham.training.run_folder import RunFolder
from csham.training.session import Session, start_session
from csham.training.turns import drain
from record import append_rows

CLASSES, BATCH = 100, 128
GOAL = 0.95  # share of the bare loop, on a GPU


def make_images(folder: Path, count: int) -> Path:
    """Write random 32x32 images, CIFAR-100's size and number of classes, as an image folder."""
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / "train" / f"class{index % CLASSES:03}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def captured(device: str, step: Callable[[], Any]) -> Callable[[], Any]:
    """Warm a step up and capture it in a CUDA graph; return what replays it, or the step itself without a GPU."""
    if not device.startswith("cuda"):
        step()
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    replay: Callable[[], None] = graph.replay
    return replay


def bare_loop(session: Session, steps: int) -> Callable[[], float]:
    """Return a function that trains `steps` batches which are ready on the device, with nothing around."""
    model, optimizer = session.model, session.optimizer
    made = [session.train_batches.batch(0, k) for k in range(steps)]
    batches = [(batch.images, batch.labels) for batch in made]
    images, labels = (value.clone() for value in batches[0])

    def step() -> None:
        loss = F.cross_entropy(model(images), labels)
        session.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    replay = captured(session.config.device, step)

    def run() -> float:
        started = time.perf_counter()
        for new_images, new_labels in batches:
            images.copy_(new_images)
            labels.copy_(new_labels)
            replay()
        if session.config.device.startswith("cuda"):
            torch.cuda.synchronize()
        return steps * session.config.images_per_step / (time.perf_counter() - started)

    return run


def csham_loop(loop: Loop, steps: int) -> Callable[[], float]:
    """Return a function that trains `steps` batches as `csham train` does."""

    def run() -> float:
        # Another epoch each time: its draws and rates are part of training.
        loop.state.epoch = (loop.state.epoch + 1) % loop.session.config.epochs
        loop.state.step = 0
        loop.state.seconds = 0.0
        started = time.perf_counter()
        drain(loop._train_epoch())  # which ends with a look at the loss
        return steps * loop.session.config.images_per_step / (time.perf_counter() - started)

    return run


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train both in turns; return the row."""
    # A fifth becomes the test part and a tenth of the rest the validation part.
    batch = 8 if args.tiny else BATCH
    data = args.data or make_images(folder / "images", max(round(args.steps * batch / 0.7) + 2 * batch, 5 * CLASSES))
    dataset = prepare(str(data), cache_dir=folder / "cache")
    asked = {"data": str(data), "backbone": args.backbone, "attention": args.attention, "recipe": "fast"}
    if args.attention != "none":
        asked["strategy"] = args.strategy
    machine = {"device": args.device, "compile": args.compile, "graph": args.graph, "precision": args.precision}
    settings = resolve(asked | machine | {"batch_size": batch})
    session = start_session(settings, dataset, RunFolder(folder / "run"), QuietProgress())
    session.train_batches.indices = session.train_batches.indices[: args.steps * batch]
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
        "batch_size": batch,
        "device": torch.cuda.get_device_name() if session.config.graph else session.config.device,
        "precision": session.config.precision,
        "compile": session.config.compile,
        "graph": session.config.graph,
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
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default=True, action=argparse.BooleanOptionalAction)
    parser.add_argument("--graph", default="auto", action=argparse.BooleanOptionalAction)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, help="of a round; default 20, on a GPU 200")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="two rounds of four small batches, not compiled")
    parser.add_argument("--no-record", dest="record", action="store_false", help="append no row")
    args = parser.parse_args()
    args.device = choose_device(args.device)
    args.steps = args.steps or (200 if args.device.startswith("cuda") else 20)
    if args.tiny:
        args.steps, args.rounds, args.compile = 4, 2, False
    csham.retain_memory()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(args, Path(folder))
    for name, value in row.items():
        print(f"{name:20} {value}")
    if row["graph"]:
        print(f"csham train does {row['share_median']} of a hand-written graphed loop; the goal is {GOAL} or more")
    if args.record:
        print("appended to", append_rows("train_throughput", [row]))


if __name__ == "__main__":
    main()
