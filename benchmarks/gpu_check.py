"""What a GPU says of csham, in minutes: its tests, one attention, whole networks, the kernels' times, training.

    scripts/gpu-check [--seconds 400] [--stages tests,modules,networks,kernels,training]

From a bare checkout, with torch, timm and accelerate; tests and training need the packages of ``NEEDED`` too, and what
is missing is said first (pytest-timeout alone may be, and then a test that hangs is not ended). While the GPU tests
run, all that will be timed is compiled in parallel processes into one cache; then it is timed in one process, in CUDA
graphs (device time: no gap between launches counts), medians of rounds, relative to a copy of the map or to the plain
network. Training is timed as images/s of ``csham train``, one and several runs at once, relative to a graph of the same
steps. Every figure is printed and appended to benchmarks/data/gpu_check.csv as it comes, so that a check that is cut
off leaves a table, which is printed again at the end. ``--device cpu --tiny`` walks through it without a GPU, to see
that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import csham
from contenders import contenders
from csham.ops import choose
from network_tax import VARIANTS, build
from record import append_rows, list_of
from train_throughput import captured, make_images

ROOT = Path(__file__).parent.parent
STAGES = ("tests", "modules", "networks", "kernels", "training")
# What a stage needs beyond what this file imports.
TRAINS = ("matplotlib", "rich", "scikit-learn", "tensorboard", "typer")
NEEDED = {"tests": ("hypothesis", "pytest", "pytest-xdist", *TRAINS), "training": TRAINS}
MODULES = {"pytest-xdist": "xdist", "scikit-learn": "sklearn"}
TESTS = (
    "tests/ops",
    "tests/attach/test_capture.py",
    "tests/attach/installed/test_recomputed_norm.py",
    "tests/data/test_batches.py",
    "tests/cost/test_passes.py",
    "tests/training/test_machine.py",
    "tests/training/test_graphs.py",
)
# Shape, layout.
MAPS = (
    ((64, 256, 56, 56), "channels_last"),
    ((64, 256, 56, 56), "contiguous"),
    ((256, 64, 32, 32), "channels_last"),
    ((256, 16, 32, 32), "channels_last"),
)
OPS = ("csham", "csham_borrowing", "eca", "se", "cbam")
# Network, image size, batch size.
NETWORKS = (("resnet20", 32, 128), ("resnet18", 32, 128), ("resnet50", 224, 128), ("mobilenetv2_100", 224, 128))
COMPARED = ("none", "sequential", "transfer", "timm_se", "timm_eca", "timm_cbam")
RUNS = (1, 2, 4, 8)
TINY: dict[str, Any] = {"maps": (((2, 8, 8, 8), "channels_last"),), "networks": (("resnet20", 32, 4),), "runs": (1, 2)}
ROUNDS, SECONDS_A_ROUND = 5, 0.05

Step = Callable[[], Any]
FOUND: list[dict[str, Any]] = []


def main() -> None:
    """Read the command line, check and end with the table."""
    args = parse()
    if args.warm:
        warm(args)
        return
    until = time.monotonic() + args.seconds
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"{device}: {choose(args.device).reason}; torch {torch.__version__}", flush=True)
    for stage, packages in NEEDED.items():
        missing = [name for name in packages if importlib.util.find_spec(MODULES.get(name, name)) is None]
        if missing and stage in args.stages:
            print(f"{stage}: fails, or some of it, without {', '.join(missing)}", flush=True)
    try:
        with compiling(args):
            if "tests" in args.stages:
                run_tests(args)
        for stage, work in (("modules", modules), ("networks", networks), ("kernels", kernels), ("training", training)):
            if stage in args.stages:
                for what in work(args):
                    if time.monotonic() > until:
                        print(f"{stage}: no time left before {what}", flush=True)
                        break
    finally:
        print(f"\n{device}, torch {torch.__version__}")
        for row in FOUND:
            print(said(row))


def note(args: argparse.Namespace, stage: str, what: str, variant: str, **figures: Any) -> None:
    """Print a figure, and append it to the rows."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    empty = {"milliseconds": "", "ratio": "", "images_per_s": "", "note": ""}
    row = {"stage": stage, "what": what, "variant": variant, **empty, **figures, "device": device}
    FOUND.append(row)
    print(said(row), flush=True)
    if args.record:
        append_rows("gpu_check", [row])


def said(row: dict[str, Any]) -> str:
    """Return a row as a line."""
    figures = [f"{row[name]:.5g} {unit}" for name, unit in UNITS.items() if row[name] != ""]
    return f"{row['stage']:10}{row['what']:44}{row['variant']:36}{'  '.join([*figures, row['note']])}"


UNITS = {"milliseconds": "ms", "ratio": "times", "images_per_s": "images/s"}


@contextlib.contextmanager
def failing_alone(args: argparse.Namespace, stage: str, what: str, variant: str) -> Iterator[None]:
    """Note an error as a figure: the others are worth having without it."""
    try:
        yield
    except Exception as err:  # whatever a compiler or a driver may raise
        note(args, stage, what, variant, note=f"{type(err).__name__}: {str(err).splitlines()[0][:200]}")
        torch.compiler.reset()


# What runs beside each other: the tests, and compiling.


def run_tests(args: argparse.Namespace) -> None:
    """Run the tests that a GPU makes a difference to, in parallel."""
    words = [sys.executable, "-m", "pytest", "-q", *TESTS, *(["-n", "6"] if not args.tiny else ["-k", "test_kernels"])]
    started = time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    print(*[line for line in lines if line.startswith(("FAILED", "ERROR"))], sep="\n", flush=True)
    if done.returncode > 1 or not lines:  # it could not run
        lines += [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")][-1:]
    summary = f"{lines[-1] if lines else 'no output'} ({time.monotonic() - started:.0f} s)"
    note(args, "tests", "pytest", f"exit code {done.returncode}", note=summary)


@contextlib.contextmanager
def compiling(args: argparse.Namespace) -> Iterator[None]:
    """Compile all that is timed later, in parallel, into the caches that this process reads."""
    folder = tempfile.mkdtemp(prefix="csham-gpu-check-")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor")
    os.environ.setdefault("TRITON_CACHE_DIR", f"{folder}/triton")
    work = []
    if "modules" in args.stages:
        work += [f"module:{op}:{n}" for n, op in itertools.product(range(len(maps_of(args))), OPS)]
    if {"networks", "kernels"} & set(args.stages):
        work += [f"network:{variant}:{n}" for n, variant in itertools.product(range(len(nets_of(args))), COMPARED)]

    def one(what: str) -> None:
        words = [sys.executable, __file__, "--warm", what, "--device", args.device, *(["--tiny"] * args.tiny)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"compiling {what}: {done.stderr.strip().splitlines()[-1:]}", flush=True)

    with ThreadPoolExecutor(1 if args.tiny else 8) as pool:
        waiting = pool.map(one, work)
        yield
        list(waiting)


def warm(args: argparse.Namespace) -> None:
    """Compile one thing that is timed later, in a process that then ends."""
    kind, name, number = args.warm.split(":")
    steps = module_steps(args, int(number), [name]) if kind == "module" else network_steps(args, int(number), [name])
    for _, step in steps:
        step()


# What is timed.


def maps_of(args: argparse.Namespace) -> Sequence[Any]:
    """Return the maps that attentions are timed on."""
    return TINY["maps"] if args.tiny else MAPS


def nets_of(args: argparse.Namespace) -> Sequence[Any]:
    """Return the networks that are timed."""
    return TINY["networks"] if args.tiny else NETWORKS


def modules(args: argparse.Namespace) -> Iterator[str]:
    """Time attentions on one map, forward and forward and backward, relative to a copy of it."""
    for number, (shape, layout) in enumerate(maps_of(args)):
        what = f"{shape} {layout}"
        yield what
        x = map_of(args, shape, layout)
        y = torch.empty_like(x)
        copy = functools.partial(y.copy_, x)
        times = timed(args, "modules", what, [("copy", copy), *module_steps(args, number, OPS)])
        for variant, milliseconds in times.items():
            note(args, "modules", what, variant, milliseconds=milliseconds, ratio=milliseconds / times["copy"])
        let_go(args)


def module_steps(args: argparse.Namespace, number: int, ops: Sequence[str]) -> Iterator[tuple[str, Step]]:
    """Return what is timed of attentions: CSHAM by its kernels, eager and compiled, and timm's, compiled."""
    shape, layout = maps_of(args)[number]
    device = torch.device(args.device)
    kernels = choose(args.device).name
    for one in contenders(ops, shape, kernels, compiled=not args.tiny, device=device):
        ours = one.op.startswith("csham") and one.implementation == kernels
        if not ours and not (one.implementation == "timm" and (one.compiled or args.tiny)):
            continue
        module: Any = torch.compile(one.module, dynamic=False, fullgraph=True) if one.compiled else one.module
        x = map_of(args, shape, layout).requires_grad_()
        grad = torch.randn_like(x)
        leaves = [x, *module.parameters()]

        def forward(module: Any = module, x: torch.Tensor = x) -> torch.Tensor:
            with autocast(args):
                y: torch.Tensor = module(x)
            return y

        def both(forward: Step = forward, leaves: Any = leaves, grad: torch.Tensor = grad) -> None:
            torch.autograd.grad(forward(), leaves, grad, allow_unused=True)

        yield f"{one.name} forward", forward
        yield f"{one.name} both", both


def networks(args: argparse.Namespace) -> Iterator[str]:
    """Time training steps of whole networks, compiled, relative to the plain one, which comes first."""
    for number, (name, size, batch) in enumerate(nets_of(args)):
        what, plain = f"{name}, {size} px, batch {batch}", None
        yield what
        for variant in COMPARED:  # one after the other: the graphs of all would not fit into memory
            times = timed(args, "networks", what, network_steps(args, number, [variant]))
            if milliseconds := times.get(variant):
                plain = milliseconds if variant == "none" else plain
                ratio = {} if plain is None else {"ratio": milliseconds / plain}
                note(args, "networks", what, variant, milliseconds=milliseconds, **ratio)
            let_go(args)


def let_go(args: argparse.Namespace) -> None:
    """Forget what was compiled, so that what comes next is compiled as in a process of its own, and free memory."""
    torch.compiler.reset()
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()


def network_steps(args: argparse.Namespace, number: int, variants: Sequence[str]) -> Iterator[tuple[str, Step]]:
    """Return one training step of each network: forward, loss, backward, SGD with momentum."""
    name, size, batch = nets_of(args)[number]
    device = torch.device(args.device)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(100, (batch,), device=device)
    for variant in variants:
        network = build(name, variant, size).to(device).to(memory_format=torch.channels_last)
        kernels = "auto" if VARIANTS[variant].kernels else "reference"
        with csham.ops.use_kernels(kernels):
            yield variant, training_step(args, network, images, labels)


def training_step(
    args: argparse.Namespace, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, compiled: bool = True
) -> Step:
    """Return a function that trains one step, and reads nothing back."""
    compiled = compiled and not args.tiny
    model: Any = torch.compile(network, dynamic=False, fullgraph=True) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(args):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def kernels(args: argparse.Namespace) -> Iterator[str]:
    """Time each kernel of a training step of the largest network with CSHAM."""
    number = len(nets_of(args)) - 1 if args.tiny else 2
    name = nets_of(args)[number][0]
    yield name
    with failing_alone(args, "kernels", name, "sequential"):
        [(_, step)] = network_steps(args, number, ["sequential"])
        for _ in range(3):
            step()
        activities = [
            torch.profiler.ProfilerActivity.CUDA if args.device == "cuda" else torch.profiler.ProfilerActivity.CPU
        ]
        with torch.profiler.profile(activities=activities, acc_events=True) as profile:
            step()
        events = profile.key_averages()
        spent = {
            one.key: (getattr(one, f"self_{'device' if args.device == 'cuda' else 'cpu'}_time_total"), one.count)
            for one in events
        }
        for key, (microseconds, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:24]:
            note(args, "kernels", name, key[:26], milliseconds=microseconds / 1000, note=f"{count} launches")


def training(args: argparse.Namespace) -> Iterator[str]:
    """Time training: a graph of one step of ready batches, and csham train, one run and several at once."""
    with tempfile.TemporaryDirectory() as folder:
        data = make_images(Path(folder) / "data", 256 if args.tiny else 20_000)
        for backbone, attention in itertools.product(
            ("resnet20", "resnet18")[: 1 if args.tiny else 2], ("none", "csham")
        ):
            what = f"{backbone} {attention}"
            yield what
            bare = None
            with failing_alone(args, "training", what, "a graph of ready batches"):
                batch = 8 if args.tiny else 128
                network = build(backbone, "transfer" if attention == "csham" else "none", 32)
                network = network.to(args.device).to(memory_format=torch.channels_last)
                images = torch.randn(batch, 3, 32, 32, device=args.device)
                images = images.contiguous(memory_format=torch.channels_last)
                labels = torch.randint(100, (batch,), device=args.device)
                step = captured(args.device, training_step(args, network, images, labels, compiled=False))
                seconds = median(seconds_of(args, step) for _ in range(ROUNDS))
                bare = batch / seconds
                note(args, "training", what, "a graph of ready batches", images_per_s=bare)
            for runs in TINY["runs"] if args.tiny else RUNS:
                for name, work in (("csham compare, {} in turns", train_in_turns), ("csham train, {} at once", train)):
                    variant = name.format(runs)
                    with failing_alone(args, "training", what, variant):
                        images_per_s = work(args, data, backbone, attention, runs, Path(folder))
                        ratio = {} if bare is None else {"ratio": images_per_s / bare}
                        note(args, "training", what, variant, images_per_s=images_per_s, **ratio)


def train(args: argparse.Namespace, data: Path, backbone: str, attention: str, runs: int, folder: Path) -> float:
    """Train several networks at once by the command; return the images/s of their last epochs together."""
    words = f"train {data} --backbone {backbone} --attention {attention} --epochs 2 --quiet".split()
    words += ["--strategy", "transfer"] if attention != "none" else []
    words += ["--no-compile", "--device", args.device, *(["--batch-size", "32"] if args.tiny else [])]
    places = [folder / f"{backbone}-{attention}-{runs}-{number}" for number in range(runs)]
    command = [sys.executable, "-m", "csham", *words]
    processes = [
        subprocess.Popen(
            [*command, "--seed", str(n), "--run", str(place)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for n, place in enumerate(places)
    ]
    errors = [process.communicate()[1].decode().strip() for process in processes]
    failed = [error for process, error in zip(processes, errors, strict=True) if process.returncode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {runs} runs failed: {failed[0].splitlines()[-1]}")
    last = [(place / "metrics.csv").read_text().splitlines() for place in places]
    column = last[0][0].split(",").index("images_per_s")
    return sum(float(lines[-1].split(",")[column]) for lines in last)


def train_in_turns(
    args: argparse.Namespace, data: Path, backbone: str, attention: str, runs: int, folder: Path
) -> float:
    """Train several networks in turns by a study's worker; return the images/s of their last epochs together."""
    # Imported here, because these need rich.
    from csham.study.engines import plan_tasks  # noqa: PLC0415
    from csham.study.engines.local import run_local  # noqa: PLC0415
    from csham.study.progress import StudyProgress  # noqa: PLC0415
    from csham.study.run import compare  # noqa: PLC0415
    from csham.study.setup import Request  # noqa: PLC0415

    machine = {"device": args.device, "compile": False}
    request = Request(
        data=str(data),
        folder=folder / f"{backbone}-{attention}-{runs}-in-turns",
        backbones=[backbone],
        attentions=["csham:transfer" if attention == "csham" else attention],
        seeds=tuple(range(runs)),
        settings={"epochs": 2, **({"batch_size": 32} if args.tiny else {})},
        machine=machine,
    )
    store = compare(request, training=False, quiet=True).store
    tasks = [task for task in plan_tasks(store.study, {}) if task.cell.network.plain == (attention == "none")]
    run_local(store, tasks, machine, StudyProgress(), jobs=runs, together=True)
    failed = [record["error"]["message"] for record in store.records() if record["status"] == "failed"]
    if failed:
        raise RuntimeError(f"{len(failed)} of {runs} runs failed: {failed[0].splitlines()[0]}")
    # Each counts its own turns, so that all of them together took the sum of their times.
    return runs / sum(1 / record["history"][-1]["images_per_s"] for record in store.records())


# How it is timed.


def map_of(args: argparse.Namespace, shape: tuple[int, ...], layout: str) -> torch.Tensor:
    """Return a random map in bfloat16."""
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return torch.randn(shape, device=args.device, dtype=torch.bfloat16).contiguous(memory_format=format_)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Return bfloat16 for what is within, without the cache, which a graph must not share."""
    return torch.autocast(args.device, torch.bfloat16, cache_enabled=False)


def timed(args: argparse.Namespace, stage: str, what: str, steps: Any) -> dict[str, float]:
    """Return the median milliseconds of each step, timed in turns; what fails is noted and left out."""
    ready: dict[str, Step] = {}
    for variant, step in steps:
        with failing_alone(args, stage, what, variant):
            ready[variant] = captured(args.device, step)
    samples: dict[str, list[float]] = {variant: [] for variant in ready}
    for _, (variant, step) in itertools.product(range(ROUNDS), list(ready.items())):
        samples[variant].append(1000 * seconds_of(args, step))
    return {variant: median(values) for variant, values in samples.items()}


def seconds_of(args: argparse.Namespace, step: Step) -> float:
    """Return the seconds of one call, of as many as take a twentieth of a second."""
    if args.device != "cuda":
        started = time.perf_counter()
        step()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    calls = 1
    while True:
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1000
        if seconds >= SECONDS_A_ROUND:
            return seconds / calls
        calls = max(2 * calls, int(1.2 * calls * SECONDS_A_ROUND / max(seconds, 1e-6)))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400, help="begin nothing after so long")
    parser.add_argument("--stages", type=list_of(STAGES), default=list(STAGES), help=",".join(STAGES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small maps and networks, nothing compiled")
    parser.add_argument("--no-record", dest="record", action="store_false", help="append no rows")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device. --device cpu --tiny walks through it without one.")
    return args


if __name__ == "__main__":
    main()
