"""Each kernel compiles for GPUs that are not here, and keeps what it works on in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, sys, torch, gpu_compile
architecture, shape, dtype, normed, parts = json.loads(sys.argv[1])
found = []
for channels_last in (False, True):
    for launch in gpu_compile.launches_of(tuple(shape), getattr(torch, dtype), channels_last, normed):
        if launch.kernel is not None and (parts is None or launch.name in parts):
            found.append((launch.name, vars(gpu_compile.compiled(launch, architecture))))
print(json.dumps(found))
"""
GATE = ["position_kernel", "spatial_gate_kernel", "gate_sums_kernel", "gate_gradient_kernel"]
WIDE = {"channel_statistics_kernel", "scale_kernel", "scale_backward_kernel"}


def compiled(*what):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT / "benchmarks"), str(ROOT / "src")))
    command = [sys.executable, "-c", SCRIPT, json.dumps(what)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_kernels_of_the_spatial_weights_spill_nothing():
    found = compiled(90, [8, 16, 14, 14], "bfloat16", False, GATE[:2])
    assert {name for name, _ in found} == set(GATE[:2])
    assert all(binary["spilled_bytes"] == 0 for _, binary in found), found


def test_every_launch_says_whether_products_and_sums_are_fused(benchmark_script):
    launches = benchmark_script("gpu_compile").launches_of((2, 4, 8, 8), torch.float32, False)
    ours = {launch.name: launch.options for launch in launches if launch.kernel is not None}
    assert {*GATE, "follow_kernel"} <= set(ours)
    assert not [name for name, options in ours.items() if "enable_fp_fusion" not in options]


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((64, 256, 56, 56), "bfloat16"), ((256, 16, 32, 32), "float16"), ((32, 512, 7, 7), "float32")]
)
def test_next_to_nothing_is_spilled_and_maps_are_read_16_bytes_at_a_time(architecture, shape, dtype, normed):
    found = compiled(architecture, list(shape), dtype, normed, None)
    assert {*GATE, *WIDE} <= {name for name, _ in found}
    # At the measured shape nothing; in other types, and on an A100, up to four numbers a thread.
    allowed = 0 if (architecture, dtype) == (90, "bfloat16") else 16
    assert not [(name, binary) for name, binary in found if binary["spilled_bytes"] > allowed]
    if shape[2] * shape[3] % 16 == 0:
        assert not [(name, binary) for name, binary in found if name in WIDE and binary["widest_bytes"] < 16]
