"""Checks, in an environment without a compiler, that the kernels of the installed wheel run and are right; says which.

env CSHAM_CACHE=EMPTY_FOLDER PATH=/nowhere PYTHON scripts/check_ready.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

import csham
from csham import ops
from csham.ops import cpu
from csham.ops.cpu.compiler import find_compiler


def main() -> None:
    assert find_compiler() is None, "there is a compiler, so this shows nothing"
    assert "site-packages" in csham.__file__, f"csham is not the installed one: {csham.__file__}"
    doctor = subprocess.run(
        [sys.executable, "-m", "csham", "doctor", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(doctor.stdout)
    assert found["kernels"]["cpu"]["name"] == "cpu", found
    assert "ready, from the wheel" in found["kernels"]["cpu"]["reason"], found
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            compare(layout, dtype, tolerance)
    assert cpu.load().state == "ready"
    assert not Path(os.environ["CSHAM_CACHE"]).exists(), "something was built"
    print(f"torch {torch.__version__}: {found['kernels']['cpu']['reason']}")


def compare(layout: torch.memory_format, dtype: torch.dtype, tolerance: float) -> None:
    """Output and gradients of the kernels beside those of plain PyTorch in float32."""
    torch.manual_seed(0)
    attention = csham.CSHAM(65)
    x = torch.randn(3, 65, 14, 15).to(dtype).to(memory_format=layout)
    upstream = torch.randn(3, 65, 14, 15).to(dtype)
    results = {}
    for kernels, map_type in (("reference", torch.float32), ("cpu", dtype)):
        attention.zero_grad()
        given = x.to(map_type).detach().requires_grad_()
        with ops.use_kernels(kernels):
            y = attention(given)
            y.backward(upstream.to(map_type))
        results[kernels] = [y, given.grad, *(parameter.grad for parameter in attention.parameters())]
    for one, other in zip(results["cpu"], results["reference"], strict=True):
        assert one is not None
        assert other is not None
        scale = other.abs().max().item() + 1e-3
        torch.testing.assert_close(one.float() / scale, other / scale, rtol=tolerance, atol=tolerance)


main()
