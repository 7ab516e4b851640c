"""What attention adds to whole networks: training steps and inference against the plain network, in turns.

    python benchmarks/network_tax.py                                  # four networks, compiled: an hour or two
    python benchmarks/network_tax.py --networks resnet20 --variants transfer,timm_eca --eager --rounds 3 --batch-size 16

Each network is measured plain, with CSHAM, ECA, SE and CBAM on csham's kernels, with ECA, SE and CBAM as timm computes
them and with CSHAM in plain PyTorch, all in channels_last and compiled whole (torch.compile(fullgraph=True): a graph
break ends the script). A training step is forward pass, loss, backward pass and SGD with momentum. Precision is bf16
(autocast) where the processor multiplies it, else float32; rows say which. Appends a row for each network, variant and
kind of pass to benchmarks/data/network_tax.csv.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import csham
from csham.cost.passes import orders, without_gradients
from csham.cost.result import Spread
from csham.cost.task import Task
from csham.ops import choose, use_kernels
from csham.probing import unchanged
from csham.provenance import versions
from csham.training.machine import cpu_multiplies_bf16
from record import append_rows, list_of

PLAIN = "none"
PASSES = ("training", "inference")
PRECISIONS = {"bf16": "bf16", "float32": "fp32"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network of the comparison.

    Attributes:
        image_size: Side of the images, in pixels.
        batch_size: Images of a batch.
        limits: Most that a pass may take, relative to the plain network, by CSHAM's strategy.
    """

    image_size: int
    batch_size: int
    limits: dict[str, float]


NETWORKS = {
    "resnet20": Network(32, 128, {"transfer": 1.10, "sequential": 1.18}),
    "resnet18": Network(32, 64, {"transfer": 1.04, "sequential": 1.08}),
    "resnet50": Network(160, 16, {"transfer": 1.06, "sequential": 1.12}),
    "mobilenetv2_100": Network(32, 128, {"transfer": 1.10, "sequential": 1.20}),
}


@dataclass(frozen=True)
class Variant:
    """What is attached to a network.

    Attributes:
        attention: Its name; empty for none.
        strategy: How it is connected.
        kernels: Whether on csham's kernels, which compute block ends too, or in PyTorch: timm's own modules, or CSHAM
            by its definition.
        recompute: Whether the norms before it are recomputed in the backward pass (eager training only).
    """

    attention: str = ""
    strategy: str = "sequential"
    kernels: bool = True
    recompute: bool = False


VARIANTS = {
    PLAIN: Variant(),
    "transfer": Variant("csham", "transfer"),
    "sequential": Variant("csham"),
    "eca": Variant("eca"),
    "se": Variant("se"),
    "cbam": Variant("cbam"),
    "transfer_recompute": Variant("csham", "transfer", recompute=True),
    "sequential_recompute": Variant("csham", recompute=True),
    "eca_recompute": Variant("eca", recompute=True),
    "se_recompute": Variant("se", recompute=True),
    "timm_eca": Variant("eca", kernels=False),
    "timm_se": Variant("se", kernels=False),
    "timm_cbam": Variant("cbam", kernels=False),
    "plain_transfer": Variant("csham", "transfer", kernels=False),
    "plain_sequential": Variant("csham", kernels=False),
}


def main(words: Sequence[str] | None = None) -> None:
    """Parse, measure, print, record."""
    args = _parser().parse_args(words)
    torch.set_num_threads(args.threads)
    csham.retain_memory()  # as training does
    device = torch.device(args.device)
    kernels = choose(device.type)
    print(f"csham's kernels on {device}: {kernels.name} ({kernels.reason})", flush=True)
    for name in args.networks:
        rows = measure(name, args, kernels.name, device)
        print(*table(rows), *bars(rows), sep="\n", flush=True)
        if args.record:
            print("appended to", append_rows("network_tax", rows), flush=True)
        torch._dynamo.reset()
        gc.collect()


def measure(name: str, args: argparse.Namespace, kernels: str, device: torch.device) -> list[Row]:
    """Time every variant of one network in turns; return a row for each variant and kind of pass."""
    found = NETWORKS[name]
    size, batch_size = found.image_size, args.batch_size or found.batch_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
    images = images.contiguous(memory_format=torch.channels_last)
    way = (PRECISIONS[args.precision], args.compiled)
    tasks: dict[tuple[str, str], Task] = {}
    for variant in (one for one in VARIANTS if one in {PLAIN, *args.variants}):
        network = build(name, variant, size).to(device).to(memory_format=torch.channels_last)
        for kind in args.passes:
            task = Task(network, kind, way, images, fullgraph=True)
            with unchanged(network), without_gradients(network):
                seconds = _seconds_of(task.warm_up, variant)
            print(f"  {name} {variant} {kind}: ready after {seconds:.0f} s", flush=True)
            tasks[variant, kind] = task
    _time(tasks, args.rounds)
    what = {
        "network": name,
        "image_size": size,
        "batch_size": batch_size,
        "precision": args.precision,
        "compiled": args.compiled,
        "memory_format": "channels_last",
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "timm": versions(["timm"])["timm"],
    }
    return [what | _row(variant, kind, task, tasks[PLAIN, kind], kernels) for (variant, kind), task in tasks.items()]


def build(name: str, variant: str, image_size: int) -> nn.Module:
    """Build a network with one variant's attention; the backbone's weights are the same in all."""
    torch.manual_seed(0)
    network = csham.create_model(name, num_classes=100, image_size=image_size)
    what, size = VARIANTS[variant], (3, image_size, image_size)
    if what.attention:
        csham.attach(network, what.attention, strategy=what.strategy, input_size=size, fuse=what.kernels)
        csham.recompute_norms(network, what.recompute)
    return network


def _seconds_of(action: Callable[[], Any], variant: str) -> float:
    started = time.monotonic()
    with _implementation(variant):
        action()
    return time.monotonic() - started


def _implementation(variant: str) -> AbstractContextManager[None]:
    """What the variant runs on: where the reference is asked for, the zoo's modules are timm's as they are."""
    return nullcontext() if VARIANTS[variant].kernels else use_kernels("reference")


def _time(tasks: dict[tuple[str, str], Task], rounds: int) -> None:
    seconds = sum(task.seconds * task.calls for task in tasks.values())
    print(f"  {rounds} rounds of {seconds:.0f} s: about {rounds * seconds / 60:.1f} minutes", flush=True)
    for number, order in zip(range(1, rounds + 1), orders(list(tasks), 0), strict=False):
        for variant, kind in order:
            with _implementation(variant):
                tasks[variant, kind].sample()
        print(f"  round {number}/{rounds}", flush=True)


def _row(variant: str, kind: str, task: Task, plain: Task, kernels: str) -> Row:
    ms = Spread.of([1000 * seconds for seconds in task.samples])
    ratios = Spread.of([a / b for a, b in zip(task.samples, plain.samples, strict=True)])
    assert ms is not None
    assert ratios is not None
    return {
        "variant": variant,
        "kernels": kernels if VARIANTS[variant].kernels else "reference",
        "pass": kind,
        "median_ms": _short(ms.median),
        "q1_ms": _short(ms.lower),
        "q3_ms": _short(ms.upper),
        "ratio": _short(ratios.median),
        "ratio_q1": _short(ratios.lower),
        "ratio_q3": _short(ratios.upper),
        "peak_mib": "" if task.peak is None else _short(task.peak / 2**20),
    }


def table(rows: list[Row]) -> list[str]:
    """Lay the rows of one network out as lines: a variant and kind of pass each."""
    first = rows[0]
    how = f"{first['precision']}, {'compiled' if first['compiled'] else 'eager'}"
    lines = [f"\n{first['network']} at {first['image_size']} px, batches of {first['batch_size']}, {how}"]
    for row in rows:
        spread = f"{row['ratio']:.3f} ({row['ratio_q1']:.3f} to {row['ratio_q3']:.3f})"
        lines.append(
            f"{row['variant']:20} {row['pass']:10} {row['median_ms']:9.2f} ms  {spread}  {row['peak_mib']} MiB"
        )
    return lines


def bars(rows: list[Row]) -> list[str]:
    """Say which of the bars the network meets."""
    lines = []
    for kind in dict.fromkeys(row["pass"] for row in rows):
        ratios = {row["variant"]: row["ratio"] for row in rows if row["pass"] == kind}
        for strategy, limit in NETWORKS[rows[0]["network"]].limits.items():
            if strategy in ratios:
                lines.append(_verdict(f"{strategy} {kind}", ratios[strategy], limit, "the plain network"))
        if {"transfer", "timm_eca"} <= ratios.keys():
            lines.append(
                _verdict(
                    f"transfer {kind}", ratios["transfer"], ratios["timm_eca"], "the plain network, which is timm's ECA"
                )
            )
    return lines


def _verdict(what: str, found: float, limit: float, unit: str) -> str:
    said = "met" if found <= limit else f"MISSED by {100 * (found - limit):.1f} points"
    return f"bar: {what:22} {found:.3f} of at most {limit:.3f} times {unit}: {said}"


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name, variant in VARIANTS.items() if not variant.recompute]
    native = "bf16" if cpu_multiplies_bf16() else "float32"
    parser.add_argument("--networks", type=list_of(NETWORKS), default=list(NETWORKS), help=",".join(NETWORKS))
    parser.add_argument("--variants", type=list_of(VARIANTS), default=default, help=",".join(VARIANTS))
    parser.add_argument("--passes", type=list_of(PASSES), default=list(PASSES), help=",".join(PASSES))
    parser.add_argument("--precision", choices=list(PRECISIONS), default=native, help=f"default here: {native}")
    parser.add_argument("--batch-size", type=int, help="default: each network's own")
    parser.add_argument("--eager", dest="compiled", action="store_false", help="without torch.compile")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (then name --precision)")
    parser.add_argument("--no-record", dest="record", action="store_false", help="append no rows")
    return parser


if __name__ == "__main__":
    main()
