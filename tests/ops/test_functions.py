"""The operators as torch.library checks them."""

import pytest
import torch
from torch import nn

import csham
from csham import ops
from csham.ops.library import NAMESPACES, SCHEMAS


def arguments(name, x):
    """Arguments of each operator for one map, those of the backward passes from the forward pass."""
    op = torch.ops.csham_cpu
    C = x.shape[1]
    filters = [torch.randn(s) for s in ((1, 1, 3), (1,), (1, 1, 3), (1,), (1, 2, 3), (1,))]
    neighbor_weight, weight, grad = torch.randn(1, C, 3, 3), torch.randn(1, 2, 7, 7), torch.randn_like(x)
    w, mean_c, max_c, mean, maximum, neighbors, *carry = op.hybrid_pool(x, *filters, True, True, True, neighbor_weight)
    one, zero = torch.ones(1), torch.zeros(1)
    norms = (one, zero, zero, one, one, zero, zero, one, True, True, 1e-3, 1e-3, True)
    s, position, *_ = op.spatial_gate(mean, maximum, neighbors, weight, *norms)
    _, _, _, ties = op.scale_backward(grad, x, w, s, w, maximum, None)
    small = torch.randn_like(w)
    return {
        "channel_pool": (x, True),
        "channel_pool_backward": (grad, x, w, None, small, small, max_c),
        "position_pool": (x, w, neighbor_weight),
        "position_pool_backward": (grad, x, w, s, w, mean, mean, maximum, ties, neighbors, neighbor_weight),
        "hybrid_pool": (x, *filters, True, True, True, neighbor_weight),
        "hybrid_pool_backward": (
            *(grad, x, w, s, *filters, True, True, w, mean_c, max_c, small, mean, mean, maximum, ties),
            *(neighbors, neighbor_weight),
        ),
        "scale": (x, w, s, grad, True, w, maximum, *carry),
        "scale_backward": (grad, x, w, s, w, maximum, x),
        "spatial_gate": (mean, maximum, neighbors, weight, *norms),
        "spatial_gate_backward": (s, s, position, mean, maximum, neighbors, weight, *norms),
    }[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(cpu_kernels, name):
    x = torch.randn(2, 9, 8, 10).to(memory_format=torch.channels_last)
    given = arguments(name, x)
    torch.library.opcheck(getattr(torch.ops.csham_cpu, name).default, given)
    if not name.endswith("backward"):
        leaves = tuple(a.clone().requires_grad_() if a is x else a for a in given)
        torch.library.opcheck(getattr(torch.ops.csham_cpu, name).default, leaves)


def test_every_operator_is_there_for_every_kind_of_kernels():
    for namespace in NAMESPACES:
        for name in SCHEMAS:
            assert hasattr(getattr(torch.ops, namespace), name)


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_operators_refuse_what_does_not_fit(cpu_kernels, wrong):
    x = torch.randn(2, 9, 8, 10)
    w = torch.randn(2, 8) if wrong == "shape" else torch.randn(2, 9).double()
    with pytest.raises(RuntimeError, match="expected 18 float32 values"):
        torch.ops.csham_cpu.position_pool(x, w, None)


class Block(nn.Module):
    """A residual block's end, then weights that are lent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(6, 6, 3, padding=1), csham.CSHAM(6)
        self.lender, self.borrower = csham.ChannelAttention(6), csham.SpatialAttention(6)

    def forward(self, x):
        y = self.attention.attend(self.conv(x), shortcut=x)
        y, w = self.lender.attend_and_lend(y)
        return self.borrower.attend(y, channel_weights=w)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_compiled_is_eager(cpu_kernels, backend, layout):
    torch.manual_seed(0)
    results = []
    block = Block().to(memory_format=layout)
    x = torch.randn(2, 6, 12, 10).to(memory_format=layout)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    with ops.use_kernels("cpu"):
        for run in (block, torch.compile(block, backend=backend, fullgraph=True)):
            block.load_state_dict(state)
            block.zero_grad()
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = run(leaf)
            y.square().sum().backward()
            grads = {name: p.grad for name, p in block.named_parameters()}
            buffers = {name: b.clone() for name, b in block.named_buffers()}
            results.append({"y": y.detach(), "x": leaf.grad, **grads, **buffers})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
