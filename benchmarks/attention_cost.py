"""What one attention costs, in copies of its map: CSHAM's kernels, plain PyTorch and timm, in interleaved rounds.

    python benchmarks/attention_cost.py                         # everything, compiled too: an hour or two
    python benchmarks/attention_cost.py --shapes 128x16x32x32 --dtypes float32 --ops csham,eca --eager --rounds 5
    python benchmarks/attention_cost.py --glibc-defaults        # without csham.retain_memory()
    python benchmarks/attention_cost.py --memory                # instead: what is kept for the backward pass

Every shape, layout and dtype is one comparison: after a check of csham's kernels against the definition in float32, all
attentions and a copy of the map take turns in an order drawn for each round. bfloat16 is autocast on a bfloat16 map, as
the networks run it; compiled is torch.compile(fullgraph=True). Prints times, copies (medians of the ratio to the copy
of the same round) and the bars, and appends a row for each time to benchmarks/data/attention_cost.csv, with --memory
one for each attention to attention_memory.csv.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import csham
from contenders import OPS, REFERENCE, TIMM, Contender, Shape, contenders, floor_copies
from csham.cost.passes import calls_for, forward_of, orders, seconds_per_call
from csham.cost.result import Spread
from csham.ops import choose
from csham.provenance import versions
from record import append_rows, list_of

SHAPES = ((64, 256, 56, 56), (128, 64, 32, 32), (128, 16, 32, 32))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DIRECTIONS = ("inference", "forward", "forward_backward")

# Copies of the map, forward and forward and backward; at maps smaller than the first shape this much longer.
LIMITS = {"float32": (1.6, 4.5), "bfloat16": (2.3, 5.5)}
AMBITIONS = {"float32": (1.25, 3.4), "bfloat16": (1.5, 3.9)}
SMALL_MAP_MS = 0.5
# In x.clone(), with glibc's defaults.
CLONE_LIMITS = (1.6, 3.6)

# Relative error, as a norm: single values may differ more where two channels are the maximum but for rounding.
# bfloat16: channel weights that an attention rounds give other channels the maximum of a position (CBAM: 0.06).
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1}

# Who copies.
TORCH = "torch"

Setting = tuple[Shape, str, str]  # shape, dtype, layout
Row = dict[str, Any]


class Maps:
    """The arrays of one comparison, made before the clock starts.

    Attributes:
        x: The map, which wants a gradient.
        grad_y: The gradient of the result.
        target: Where copies go.
    """

    def __init__(self, setting: Setting, device: torch.device) -> None:
        shape, dtype, layout = setting
        generator = torch.Generator().manual_seed(0)
        made = (torch.randn(shape, generator=generator) for _ in range(2))
        x, self.grad_y = (one.to(device, DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout]) for one in made)
        self.target = torch.zeros_like(x)
        self.x = x.requires_grad_()


class Timed:
    """One call, timed now and then.

    Args:
        op: What is computed.
        direction: ``"inference"``, ``"forward"`` (in training) or ``"forward_backward"``.
        contender: Who computes it; None for copies.
        run: The call.
        x: The map.
    """

    def __init__(self, op: str, direction: str, contender: Contender | None, run: Callable[[], Any], x: Tensor) -> None:
        self.op, self.direction, self.contender = op, direction, contender
        self.samples: list[float] = []
        self.calls = 1
        self._run = run
        self._x = x
        self._module = contender.module if contender is not None else nn.Identity()

    def warm_up(self) -> None:
        """Compile, and learn how long a call takes."""
        self._seconds()
        self.calls = calls_for(self._seconds())

    def sample(self) -> None:
        """Time a block of calls."""
        self.samples.append(self._seconds())

    def _seconds(self) -> float:
        """Seconds of a call; gradients of the call before are released before the clock starts."""
        self._module.train(self.direction != "inference")
        seconds = 0.0
        with torch.inference_mode(self.direction == "inference"):
            for _ in range(self.calls):
                for tensor in (self._x, *self._module.parameters()):
                    tensor.grad = None
                seconds += seconds_per_call(self._run, self._x.device)
        return seconds / self.calls


def main(words: Sequence[str] | None = None) -> None:
    """Parse, measure, print, record."""
    args = _parser().parse_args(words)
    torch.set_num_threads(args.threads)
    if not args.glibc_defaults:
        csham.retain_memory()
    device = torch.device(args.device)
    kernels = choose(device.type)
    print(f"csham's kernels on {device}: {kernels.name} ({kernels.reason})", flush=True)
    for setting in _settings(args):
        rows = (measure_memory if args.memory else measure)(args, setting, kernels.name, device)
        print(*table(rows), *([] if args.memory else bars(rows)), sep="\n")
        if args.record:
            print("appended to", append_rows("attention_memory" if args.memory else "attention_cost", rows))
        torch._dynamo.reset()
        gc.collect()


def measure(args: argparse.Namespace, setting: Setting, kernels: str, device: torch.device) -> list[Row]:
    """Prove and time every contender at one shape, dtype and layout; return a row for each time."""
    maps = Maps(setting, device)
    timed = [*_copies(maps)]
    for contender in contenders(args.ops, setting[0], kernels, compiled=args.compiled, device=device):
        print(f"  preparing {contender.name} at {_words(setting)}", flush=True)
        forward = forward_of(contender.module, device, _precision(setting), contender.compiled, fullgraph=True)
        if contender.oracle is not None:
            check(contender, forward, maps, setting)
        passes = [Timed(contender.op, *_pass(d, forward, maps, contender)) for d in args.directions]
        for one in passes:
            one.warm_up()
        timed += passes
    for one in timed[:2]:
        one.warm_up()
    _time(timed, args.rounds)
    return [_row(one, timed, setting, args, device) for one in timed]


def check(contender: Contender, forward: Callable[[Tensor], Tensor], maps: Maps, setting: Setting) -> None:
    """Compare outputs and all gradients with the oracle's in float32.

    Raises:
        SystemExit: They differ by more than rounding explains.
    """
    assert contender.oracle is not None
    before = [buffer.clone() for buffer in contender.module.buffers()]
    found = _outputs(contender.module, forward, maps.x, maps.grad_y)
    expected = _outputs(contender.oracle, contender.oracle, maps.x.float(), maps.grad_y.float())
    for buffer, value in zip(contender.module.buffers(), before, strict=True):
        buffer.copy_(value)
    for name, value in expected.items():
        error = ((found[name].float() - value).norm() / value.norm()).item()
        if not error <= TOLERANCES[setting[1]]:
            raise SystemExit(
                f"{contender.name} at {_words(setting)}: {name} differs from the definition by {error:.2g} of its "
                f"norm, which is more than {TOLERANCES[setting[1]]:g}. Nothing wrong is timed."
            )


def _outputs(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    """What a module returns, in inference and in training, with the gradients of the map and of its parameters."""
    module.eval()
    with torch.inference_mode():
        inferred = forward(x)
    module.train()
    leaf = x.detach().requires_grad_()
    y = forward(leaf)
    y.backward(grad_y)
    assert leaf.grad is not None
    gradients = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    module.zero_grad()
    return {
        "its output in inference": inferred,
        "its output": y.detach(),
        "the gradient of the map": leaf.grad,
        "the gradient of its parameters": torch.cat(gradients),
    }


def _copies(maps: Maps) -> Iterator[Timed]:
    x = maps.x.detach()
    yield Timed("copy", "forward", None, lambda: maps.target.copy_(x), x)
    yield Timed("clone", "forward", None, x.clone, x)


def _pass(
    direction: str, forward: Callable[[Tensor], Tensor], maps: Maps, contender: Contender
) -> tuple[str, Contender, Callable[[], Any], Tensor]:
    def both() -> None:
        forward(maps.x).backward(maps.grad_y)

    run = both if direction == "forward_backward" else lambda: forward(maps.x)
    return direction, contender, run, maps.x


def _time(timed: list[Timed], rounds: int) -> None:
    started = time.monotonic()
    for number, order in zip(range(1, rounds + 1), orders(timed, 0), strict=False):
        for one in order:
            one.sample()
        print(f"  round {number}/{rounds}, {time.monotonic() - started:.0f} s", flush=True)


def _row(one: Timed, timed: list[Timed], setting: Setting, args: argparse.Namespace, device: torch.device) -> Row:
    copy, clone = timed[:2]
    ms = Spread.of([1000 * seconds for seconds in one.samples])
    copies = Spread.of([a / b for a, b in zip(one.samples, copy.samples, strict=True)])
    assert ms is not None
    assert copies is not None
    floor = floor_copies(one.op, one.direction)
    return {
        **_what(one.op, one.contender, setting),
        "direction": one.direction,
        "median_ms": _short(ms.median),
        "q1_ms": _short(ms.lower),
        "q3_ms": _short(ms.upper),
        "copies": _short(copies.median),
        "copies_q1": _short(copies.lower),
        "copies_q3": _short(copies.upper),
        "clones": _short(median(a / b for a, b in zip(one.samples, clone.samples, strict=True))),
        "floor_copies": floor,
        "share_of_floor": _short(floor / copies.median),
        "rounds": args.rounds,
        "calls": one.calls,
        "retained": not args.glibc_defaults,
        **_where(device),
    }


def measure_memory(args: argparse.Namespace, setting: Setting, kernels: str, device: torch.device) -> list[Row]:
    """Count what each contender keeps for its backward pass; eager, since the compiler's graphs keep it elsewhere."""
    maps = Maps(setting, device)
    rows = []
    for contender in contenders(args.ops, setting[0], kernels, compiled=False, device=device):
        forward = forward_of(contender.module, device, _precision(setting), compiled=False)
        kept = kept_bytes(contender.module.train(), forward, maps.x)
        rows.append(
            {
                **_what(contender.op, contender, setting),
                "kept_mib": _short(kept / 2**20),
                "kept_maps": _short(kept / maps.x.nbytes),
                **_where(device),
            }
        )
    return rows


def kept_bytes(module: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the bytes that autograd keeps of one pass, the map's too and parameters' not; each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # which keeps the address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward(x)
    own = {parameter.untyped_storage().data_ptr() for parameter in (*module.parameters(), *module.buffers())}
    del y
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def table(rows: list[Row]) -> list[str]:
    """Lay the rows of one comparison out as lines: an attention each, its directions side by side."""
    first = rows[0]
    lines = [f"\n{first['shape']} {first['dtype']} {first['memory_format']}, {torch.get_num_threads()} threads"]
    names = dict.fromkeys((row["op"], row["implementation"], row["compiled"]) for row in rows)
    for name in names:
        cells = [_cell(row) for row in rows if (row["op"], row["implementation"], row["compiled"]) == name]
        op, implementation, compiled = name
        lines.append(f"{op:16} {implementation:8} {'compiled' if compiled else '':8}" + "".join(cells))
    return lines


def _cell(row: Row) -> str:
    if "kept_mib" in row:
        return f"  keeps {row['kept_mib']:8.2f} MiB, {row['kept_maps']:.2f} maps"
    short = {"forward_backward": "fwd+bwd", "inference": "infer", "forward": "forward"}[row["direction"]]
    return f"  {short} {row['median_ms']:8.3f} ms {row['copies']:6.2f} copies"


def bars(rows: list[Row]) -> list[str]:
    """Say which of the bars CSHAM's kernels meet."""
    copy = next(row for row in rows if row["op"] == "copy")
    ours = [row for row in rows if row["op"] == "csham" and row["implementation"] not in (REFERENCE, TIMM, TORCH)]
    return [_bar(row, copy) for row in ours if row["direction"] != "inference"]


def _bar(row: Row, copy: Row) -> str:
    index = int(row["direction"] == "forward_backward")
    how = f"csham {'compiled' if row['compiled'] else 'eager'} {row['direction']}"
    if row["device"] != "cpu":
        return _verdict(how, row["copies"], 1.5 * row["floor_copies"], "copies (1.5 times the floor)")
    if not row["retained"]:
        return _verdict(how, row["clones"], CLONE_LIMITS[index], "clones")
    small = row["shape"] != _shape_words(SHAPES[0])
    extra = SMALL_MAP_MS / copy["median_ms"] if small else 0.0
    limit, ambition = (goal[row["dtype"]][index] + extra for goal in (LIMITS, AMBITIONS))
    why = f"copies{f' ({SMALL_MAP_MS} ms of them for a small map)' if small else ''}; ambition {ambition:.2f}"
    return _verdict(how, row["copies"], limit, why)


def _verdict(how: str, found: float, limit: float, unit: str) -> str:
    said = "met" if found <= limit else f"MISSED by {100 * (found / limit - 1):.0f}%"
    return f"bar: {how:32} {found:6.2f} of at most {limit:5.2f} {unit}: {said}"


def _what(op: str, contender: Contender | None, setting: Setting) -> Row:
    shape, dtype, layout = setting
    return {
        "op": op,
        "shape": _shape_words(shape),
        "dtype": dtype,
        "memory_format": layout,
        "implementation": contender.implementation if contender else TORCH,
        "compiled": contender.compiled if contender else False,
    }


def _where(device: torch.device) -> Row:
    found = {"timm": "", "triton": ""} | versions(("timm", "triton"))
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type, **found}


def _precision(setting: Setting) -> str:
    return "bf16" if setting[1] == "bfloat16" else "fp32"


def _words(setting: Setting) -> str:
    shape, dtype, layout = setting
    return f"{_shape_words(shape)} {dtype} {layout}"


def _shape_words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _settings(args: argparse.Namespace) -> list[Setting]:
    return [(shape, dtype, layout) for shape in args.shapes for dtype in args.dtypes for layout in args.layouts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ",".join(map(_shape_words, SHAPES))
    parser.add_argument("--shapes", type=_shapes, default=list(SHAPES), help=f"BxCxHxW,... (default {shapes})")
    parser.add_argument("--dtypes", type=list_of(DTYPES), default=list(DTYPES), help=",".join(DTYPES))
    parser.add_argument("--layouts", type=list_of(LAYOUTS), default=list(LAYOUTS), help=",".join(LAYOUTS))
    parser.add_argument("--directions", type=list_of(DIRECTIONS), default=list(DIRECTIONS), help=",".join(DIRECTIONS))
    parser.add_argument("--ops", type=list_of(OPS), default=list(OPS), help=",".join(OPS))
    parser.add_argument("--eager", dest="compiled", action="store_false", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--glibc-defaults", action="store_true", help="let glibc give freed memory back to the system")
    parser.add_argument("--memory", action="store_true", help="count what is kept for the backward pass, time nothing")
    parser.add_argument("--no-record", dest="record", action="store_false", help="append no rows")
    return parser


def _shapes(text: str) -> list[Shape]:
    found: list[Shape] = []
    for shape in text.split(","):
        sizes = [int(size) for size in shape.split("x") if size.isdigit()]
        if len(sizes) != 4 or _shape_words(tuple(sizes)) != shape:
            raise argparse.ArgumentTypeError(f"shapes are BxCxHxW, separated by commas, got {text!r}")
        B, C, H, W = sizes
        found.append((B, C, H, W))
    return found


if __name__ == "__main__":
    main()
