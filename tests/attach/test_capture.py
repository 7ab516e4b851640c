"""A training step of an attached network, as a CUDA graph asks for it: the device alone decides, in buffers that stay.

While a graph is captured nothing can be read back, copied to the device or made in a size that values decide, and
what is captured is replayed in the same memory. Where there is no GPU, a step on the meta device has no values to read,
and a step on the CPU is walked operator by operator.
"""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import csham
from csham.backbones import CifarResNet
from csham.ops import choice

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CHOICES = {
    "sequential": {"attention": "csham"},
    "transfer": {"attention": "csham", "strategy": "transfer"},
    "gated": {"attention": "csham", "strategy": "transfer", "gated": True},
    "se": {"attention": "se"},
    "cbam": {"attention": "cbam"},
    "eca": {"attention": "eca"},
}
EVERY_CHOICE = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


class NoHost(TorchDispatchMode):
    """Refuses what makes the host wait for values of a device, or bring values to it."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device).type
        self.operators = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators.add(func)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.intersection(func.tags)
        if func is torch.ops.aten.index.Tensor:  # by a mask it makes as many as there are; by numbers it does not
            waits = any(t.dtype in (torch.bool, torch.uint8) for t in tensors)
        made_of_numbers = func is torch.ops.aten.lift_fresh.default  # torch.tensor(...)
        # A number on the CPU is an argument of the kernel; a copy of it is not.
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        elsewhere = [t for t in tensors if t.device.type != self.device and (t.dim() or copies)]
        pinned = "pin_memory" in func.name()
        if waits or made_of_numbers or elsewhere or pinned:
            raise AssertionError(f"{func} makes the host wait for the device")
        return out


class Step:
    """One training step, from images and labels that stay in place to a loss that does."""

    def __init__(self, model, images, labels):
        self.model, self.images, self.labels = model, images, labels
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
        self.loss = torch.zeros((), device=images.device)

    def run(self):
        self.optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())

    def state(self):
        """Every tensor that a step reads or writes."""
        parameters = list(self.model.parameters())
        momenta = [self.optimizer.state[p]["momentum_buffer"] for p in parameters]
        return [*parameters, *self.model.buffers(), *(p.grad for p in parameters), *momenta, self.loss]


def step_of(model, device, side=16):
    images = torch.randn(4, 3, side, side, device=device)
    return Step(model.to(device).train(), images, torch.zeros(4, dtype=torch.int64, device=device))


def network(choices):
    torch.manual_seed(1)
    model = CifarResNet(14, num_classes=5)
    csham.attach(model, **choices)
    return model


def as_on_a_gpu(monkeypatch, device):
    """Let tensors of a device take the way that those of a GPU take, as far as the operators of the kernels."""
    pytest.importorskip("csham.ops.triton", reason="Triton is not installed")
    key = (choice.kernels_setting(), device)
    monkeypatch.setitem(choice._chosen, key, choice.Choice("triton", "for a test"))


@EVERY_CHOICE
def test_no_step_reads_a_value(choices, monkeypatch):
    as_on_a_gpu(monkeypatch, "meta")
    step = step_of(network(choices), "meta")
    step.run()
    with NoHost("meta") as seen:
        step.run()
    assert {"csham_triton"} <= {func.namespace for func in seen.operators}


@pytest.mark.parametrize("name", ["mobilenetv2_035", "convnext_atto", "densenet121"])
def test_no_step_of_other_networks_reads_a_value(name, monkeypatch):
    as_on_a_gpu(monkeypatch, "meta")
    model = timm.create_model(name, num_classes=5)
    csham.attach(model, "csham", strategy="transfer")
    step = step_of(model, "meta", side=64)
    step.run()
    with NoHost("meta") as seen:
        step.run()
    assert {"csham_triton"} <= {func.namespace for func in seen.operators}


@EVERY_CHOICE
def test_no_step_on_the_cpu_reads_a_value(choices):
    step = step_of(network(choices), "cpu")
    step.run()
    with NoHost("cpu"):
        step.run()


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x + torch.tensor([1.0, 2.0]),
        lambda x: x.unique(),
    ],
)
def test_a_step_that_reads_a_value_is_noticed(reads):
    with pytest.raises(AssertionError, match="makes the host wait"), NoHost("cpu"):
        reads(torch.randn(2))


@EVERY_CHOICE
def test_a_step_runs_again_in_the_same_buffers(choices):
    """Replayed from the same state it leaves the same bits, and no buffer is another than before."""
    step = step_of(network(choices), "cpu")
    step.run()
    buffers = step.state()
    places = [tensor.data_ptr() for tensor in buffers]
    before = [tensor.detach().clone() for tensor in buffers]

    def replay():
        with torch.no_grad():
            for tensor, value in zip(buffers, before, strict=True):
                tensor.copy_(value)
        torch.manual_seed(5)
        step.run()
        return [tensor.detach().clone() for tensor in step.state()]

    first, second = replay(), replay()
    assert any(not torch.equal(one, other) for one, other in zip(first, before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [tensor.data_ptr() for tensor in step.state()] == places


@NEEDS_GPU
@EVERY_CHOICE
def test_a_step_on_a_gpu_waits_for_nothing(choices):
    step = step_of(network(choices), "cuda")
    step.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with NoHost("cuda"):
            step.run()
        step.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@NEEDS_GPU
@EVERY_CHOICE
def test_a_step_is_captured_in_a_cuda_graph_and_replayed(choices):
    model = network(choices)
    captured, eager = (step_of(copy.deepcopy(model), "cuda") for _ in range(2))
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            captured.run()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.run()
    for _ in range(3):
        eager.images.copy_(captured.images)
        eager.run()
    for tensor, value in zip(captured.state(), eager.state(), strict=True):
        tensor.detach().copy_(value.detach())
    for _ in range(2):
        images = torch.randn_like(captured.images)
        for step in (captured, eager):
            step.images.copy_(images)
        graph.replay()
        eager.run()
        torch.testing.assert_close(captured.loss, eager.loss, rtol=1e-3, atol=1e-3)
