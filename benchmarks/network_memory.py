"""What whole networks with attention keep for the backward pass, relative to the plain network.

    python benchmarks/network_memory.py [--networks resnet20,resnet18,resnet50] [--batch-size 4]

Counted are the bytes of what a forward pass in bf16 (autocast) makes and keeps, parameters and buffers not: in eager
code, in eager code with csham.recompute_norms, and in compiled code, there from the graphs that torch.compile makes
before it compiles them. No time is measured, so it may run beside anything. Appends a row for each network, attention
and mode to benchmarks/data/network_memory.csv.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import Graph
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import csham
from record import append_rows, list_of

IMAGE_SIZES = {"resnet20": 32, "resnet18": 32, "resnet50": 224}
ATTENTIONS = {
    "none": None,
    "se": ("se", "sequential"),
    "eca": ("eca", "sequential"),
    "cbam": ("cbam", "sequential"),
    "sequential": ("csham", "sequential"),
    "transfer": ("csham", "transfer"),
}
MODES = ("eager", "recomputed", "compiled")


class Made(TorchDispatchMode):
    """Storages that operations made, and that may be gone again."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return found

    def left(self, others: Iterable[Tensor]) -> int:
        """Count the bytes that are still there and belong to none of the others."""
        gc.collect()
        places = {tensor.untyped_storage().data_ptr() for tensor in others}
        return sum(size for place, (ref, size) in self.storages.items() if place not in places and not ref.expired())


class Graphs:
    """A backend for torch.compile that runs what a compiler would be given, and notes it.

    Attributes:
        forward: Graphs of forward passes.
        kept: Bytes that they hand to their backward passes.
    """

    def __init__(self, decompositions: Any = None) -> None:
        self.forward: list[Graph] = []
        self.kept = 0
        self.backend = aot_autograd(
            fw_compiler=_as_it_is, bw_compiler=_as_it_is, partition_fn=self._partition, decompositions=decompositions
        )

    def _partition(self, joint: Any, args: Any, *, num_fwd_outputs: int, **more: Any) -> Any:
        parts = min_cut_rematerialization_partition(joint, args, num_fwd_outputs=num_fwd_outputs, **more)
        self.forward.append(parts[0].graph)
        (output,) = (node for node in parts[0].graph.nodes if node.op == "output")
        made = [node for node in output.args[0][num_fwd_outputs:] if node.op != "placeholder"]
        storages = [node.meta["val"].untyped_storage() for node in made if isinstance(node.meta.get("val"), Tensor)]
        self.kept += sum({storage._cdata: storage.nbytes() for storage in storages}.values())
        return parts


def _as_it_is(graph: Any, _: Any) -> Any:
    return make_boxed_func(graph)


def kept_in_eager_code(model: nn.Module, images: Tensor, *, autocast: bool = False) -> int:
    """Count the bytes that are still there when the forward pass is over."""
    with Made() as made, _bf16(images, autocast):
        loss = model(images).logsumexp(1).mean()
    kept = made.left((*model.parameters(), *model.buffers()))
    assert loss.requires_grad
    return kept


def kept_in_compiled_code(model: nn.Module, images: Tensor, *, autocast: bool = False) -> int:
    """Count the bytes that the forward graph hands to the backward graph."""
    torch.compiler.reset()
    graphs = Graphs()
    with _bf16(images, autocast):
        torch.compile(model, backend=graphs.backend, fullgraph=True)(images).logsumexp(1).mean()
    return graphs.kept


def _bf16(images: Tensor, enabled: bool) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=enabled)


def measure(name: str, batch_size: int) -> list[dict[str, Any]]:
    """Return the rows of one network."""
    side = IMAGE_SIZES[name]
    images = torch.randn(batch_size, 3, side, side).to(memory_format=torch.channels_last)
    rows, plain = [], dict.fromkeys(MODES, 0)
    for variant, choice in ATTENTIONS.items():
        for mode in MODES:
            attention, strategy = choice or (None, "sequential")
            model = csham.create_model(name, attention=attention, strategy=strategy, num_classes=100, image_size=side)
            model = model.to(memory_format=torch.channels_last)
            if mode == "recomputed" and choice:
                csham.recompute_norms(model)
            count = kept_in_compiled_code if mode == "compiled" else kept_in_eager_code
            kept = count(model, images, autocast=True)
            plain[mode] = plain[mode] or kept
            row = {"network": name, "image_size": side, "batch_size": batch_size, "variant": variant, "mode": mode}
            rows.append(row | {"kept_mib": f"{kept / 2**20:.2f}", "of_plain": f"{kept / plain[mode]:.3f}"})
            print(*rows[-1].values(), flush=True)
    return rows


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=list_of(IMAGE_SIZES), default=list(IMAGE_SIZES))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    rows = [row for name in args.networks for row in measure(name, args.batch_size)]
    if not args.no_record:
        print("appended to", append_rows("network_memory", rows))


if __name__ == "__main__":
    main()
