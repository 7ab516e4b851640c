"""In a group of one process a shared batch norm is what it was; test_many_processes has two."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from csham.layers.norm import BatchNorm2d
from csham.training.shared_norm import share_batch_norms

NORMS = {
    "torch, 1d": (lambda: nn.BatchNorm1d(3), (5, 3)),
    "torch, 2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 2)),
    "torch, 3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 2, 2)),
    "without weights": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 5, 2)),
    "without running statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 2)),
    "attention's": (lambda: BatchNorm2d(3), (4, 3, 5, 2)),
    "timm's": (lambda: BatchNormAct2d(3, act_layer=nn.SiLU), (4, 3, 5, 2)),
}


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def results(norm, x, upstream):
    """Output, gradients and running statistics of a step, and the output in evaluation after it."""
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(upstream)
    grads = {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {"y": y, "x": x.grad, **grads, **dict(norm.named_buffers()), "evaluated": norm.eval()(x)}


# bfloat16: the output is rounded to 8 bits; statistics are kept in float32 as torch keeps them.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("name", NORMS)
def test_it_computes_what_it_computed(name, dtype, tolerance):
    build, shape = NORMS[name]
    norm = build().to(torch.float64 if dtype == torch.float64 else torch.float32)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    network = nn.Sequential(copy.deepcopy(norm))
    assert share_batch_norms(network, torch.device("cpu")) == []
    # A mean far from 0, which the difference of means of squares would not survive.
    x, upstream = (30 + torch.randn(shape, dtype=torch.float64)).to(dtype), torch.randn(shape).to(dtype)
    found, expected = results(network[0], x, upstream), results(norm, x, upstream)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=lambda text, k=key: k + text)


def test_a_shared_norm_refuses_what_it_refused():
    network = nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norms(network, torch.device("cpu"))
    with pytest.raises(ValueError, match="4D"):
        network(torch.randn(4, 3))
