"""Launches of CSHAM's sequential step on a GPU, which need not be there: what each moves, and how it compiles.

    python benchmarks/gpu_compile.py [--shape 64,256,56,56] [--dtype bfloat16] [--architecture 90] [--layout both]

Forward and backward run on tensors without data; what would be launched is noted: Triton's kernels and PyTorch's
operators. Each kernel is compiled with Triton's own ptxas: registers a thread, bytes of them spilled to memory, bytes
of the widest access, block barriers and instructions. Of time it says nothing. Prints a table, and appends its rows to
benchmarks/data/gpu_compile.csv.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from csham.ops.operators.position_pool import neighbor_shape
from csham.ops.triton.register import IMPLEMENTATIONS
from record import append_rows

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int64": "i64"}


# Operators that launch nothing.
IDLE = {"empty", "empty_like", "new_empty", "view", "split", "split_with_sizes", "expand", "detach", "select", "slice"}


@dataclass
class Launch:
    """One launch: its pass, its name, the arrays it reads or writes, and of a kernel of ours everything given to it."""

    part: str
    name: str
    arrays: list[torch.Tensor]
    kernel: Any = None
    programs: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        """Of its arrays, each read or written once."""
        return sum(array.numel() * array.element_size() for array in self.arrays) / 1e6


@dataclass
class Compiled:
    """Product of the compiler."""

    registers: int
    spilled_bytes: int
    widest_bytes: int
    barriers: int
    instructions: int


class Recorder:
    """Stand-in for a kernel: notes a launch instead of making it."""

    def __init__(self, kernel: Any, launches: list[Launch], part: list[str]) -> None:
        self.kernel, self.launches, self.part = kernel, launches, part

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, **named: Any) -> None:
            names = list(inspect.signature(self.kernel.fn).parameters)
            arguments = dict(zip(names, given, strict=False)) | {n: v for n, v in named.items() if n in names}
            options = {name: value for name, value in named.items() if name not in names}
            arrays = {id(one): one for one in arguments.values() if isinstance(one, torch.Tensor)}
            note = (
                self.part[0],
                self.kernel.fn.__name__,
                list(arrays.values()),
                self.kernel,
                grid[0],
                arguments,
                options,
            )
            self.launches.append(Launch(*note))

        return launch


class Operators(TorchDispatchMode):
    """Notes PyTorch's own operators among the launches."""

    def __init__(self, launches: list[Launch], part: list[str]) -> None:
        super().__init__()
        self.launches, self.part = launches, part

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        if name not in IDLE:
            arrays = [one for one in tree_flatten((args, found))[0] if isinstance(one, torch.Tensor)]
            self.launches.append(Launch(self.part[0], f"torch.{name}", arrays))
        return found


@contextmanager
def recording(part: list[str]) -> Iterator[list[Launch]]:
    """Let every module of ``csham.ops.triton`` note its launches in the list given."""
    launches: list[Launch] = []
    modules = [module for name, module in sys.modules.items() if name.startswith("csham.ops.triton.")]
    found = [(module, name, one) for module in modules for name, one in vars(module).items()]
    launched = [(module, name, one) for module, name, one in found if name.endswith("_kernel")]
    try:
        for module, name, kernel in launched:
            setattr(module, name, Recorder(kernel, launches, part))
        with Operators(launches, part):
            yield launches
    finally:
        for module, name, kernel in launched:
            setattr(module, name, kernel)


def launches_of(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, normed: bool = False) -> list[Launch]:
    """Walk through a training step of CSHAM's sequential attention, behind a norm or not, on tensors without data."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=layout) for _ in range(2))
    B, C, H, W = shape

    def small(*sides: int) -> torch.Tensor:
        return torch.empty(sides, device="meta")

    operators = SimpleNamespace(**IMPLEMENTATIONS)
    filters = (small(1, 1, 3), small(1), small(1, 1, 3), small(1), small(1, 2, 3), small(1))
    norms, settings = tuple(small(1) for _ in range(8)), (True, True, 1e-3, 1e-3, True)
    running = [one for _ in range(2) for one in (small(1), small(1), small(1).long())]
    neighbor, main = small(1, C, 3, 3), small(1, 2, 7, 7)
    affine = small(2, C) if normed else None
    w, position, neighbors = small(B, C), small(B, 1, H, W), small(*neighbor_shape(x))
    part = ["forward"]
    with recording(part) as launches:
        operators.hybrid_pool(x, affine, *filters, True, True, True, neighbor)
        operators.spatial_gate(position, position, neighbors, main, *norms, *settings)
        operators.follow(running, list(norms[:4]), [1.1] * 2, [0.01] * 2, [True] * 2)
        operators.scale(x, affine, w, position, None, False, w, position)
        part[0] = "backward"
        operators.scale_backward(dy, x, affine, w, position, w, position, None)
        operators.spatial_gate_backward(*(position,) * 5, neighbors, main, *norms, *settings)
        channel = (True, True, w, w, w, w)
        statistics = (position, position, position, position, neighbors, neighbor)
        operators.hybrid_pool_backward(dy, x, affine, w, position, *filters, *channel, *statistics)
    return launches


def compiled(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch, and read what came of it from the machine code."""
    signature, constants, attributes = {}, {}, {}
    constexprs = {p.name for p in launch.kernel.params if p.is_constexpr}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if name in constexprs or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[str(value.dtype).removeprefix("torch.")]
            attributes[index,] = [["tt.divisibility", 16]]  # the allocator's
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    usage, code = _read(binary.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    operations = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", code))
    widths = [128, 64, 32, 16, 8]
    accesses = [name for name in operations if name.startswith(("LDG", "STG"))]
    bits = next((b for b in widths if any(f".{b}" in name or f".U{b}" in name for name in accesses)), 32)
    return Compiled(
        int(found[1]),
        int(found[2]),
        bits // 8,
        sum(count for name, count in operations.items() if name.startswith("BAR")),
        sum(operations.values()),
    )


def _read(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([BIN / "cuobjdump", "--dump-resource-usage"], [BIN / "nvdisasm", "-c"])
        usage, code = (
            subprocess.run([*map(str, command), file.name], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    return usage, code


def main() -> None:
    """Read the command line, compile, print and append."""
    args = _parser().parse_args()
    for layout in ("contiguous", "channels_last"):
        if args.layout not in (layout, "both"):
            continue
        launches = launches_of(args.shape, getattr(torch, args.dtype), layout == "channels_last")
        rows = [{"layout": layout, "number": n, **row_of(one, args)} for n, one in enumerate(launches, 1)]
        for row in rows:
            print("  ".join(f"{value!s:<12}" for value in row.values()), flush=True)
        append_rows("gpu_compile", rows)


def row_of(launch: Launch, args: argparse.Namespace) -> dict[str, Any]:
    """Return all that is known of a launch; of PyTorch's operators only what they move."""
    unknown = dict.fromkeys(Compiled.__dataclass_fields__, "")
    return {
        "shape": ",".join(map(str, args.shape)),
        "dtype": args.dtype,
        "architecture": args.architecture,
        "part": launch.part,
        "launch": launch.name,
        "megabytes": round(launch.megabytes, 3),
        "programs": launch.programs or "",
        **(unknown if launch.kernel is None else asdict(compiled(launch, args.architecture))),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=lambda text: tuple(map(int, text.split(","))), default=(64, 256, 56, 56))
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--architecture", type=int, default=90, help="80 for an A100, 90 for an H100")
    parser.add_argument("--layout", choices=["contiguous", "channels_last", "both"], default="both")
    return parser


if __name__ == "__main__":
    main()
