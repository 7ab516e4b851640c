"""The kernels' threads are PyTorch's, as many as torch.set_num_threads says, whichever thread calls them."""

import os
import subprocess
import sys

import pytest
import torch

# A thread of OpenMP's appears for each but the first that a kernel uses; filling x, in parallel, is another's.
COUNT = """
import os, sys, threading
import torch
import csham

def threads():
    return len(os.listdir("/proc/self/task"))

def run():
    x = torch.empty(64, 64, 32, 32)
    before = threads()
    torch.ops.csham_cpu.channel_pool(x, None, True)
    print(threads() - before)

csham.ops.choose("cpu")
torch.set_num_threads(int(sys.argv[1]))
if sys.argv[2] == "main":
    run()
else:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
"""


RESULTS = """
import sys
import torch
import csham

csham.ops.choose("cpu")
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
attention, x = csham.CSHAM(16), torch.randn(64, 16, 32, 32, requires_grad=True)
attention(x).square().sum().backward()
print(x.grad.double().sum().item(), *(p.grad.double().sum().item() for p in attention.parameters()))
"""


def run(code, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"CSHAM_KERNELS": "cpu", "OMP_NUM_THREADS": "2"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the threads are counted in /proc")


@on_linux
@pytest.mark.parametrize("caller", ["main", "another"])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads(cpu_kernels, threads, caller):
    assert run(COUNT, threads, caller) == [str(threads - 1)]


@pytest.mark.slow
@on_linux
@pytest.mark.skipif(torch.torch_version.TorchVersion(torch.__version__) < "2.10", reason="PyTorch lends no threads")
def test_threads_of_another_openmp(cpu_kernels, tmp_path):
    another = {"CSHAM_CACHE": str(tmp_path), "CSHAM_CXXFLAGS": "-fno-openmp -O0"}  # as Clang builds, here and on macOS
    counts = [run(COUNT, threads, caller, **another) for threads in (1, 3) for caller in ("main", "another")]
    assert counts == [["0"], ["0"], ["2"], ["2"]]
    assert run(RESULTS, 1, **another) == run(RESULTS, 3, **another) == run(RESULTS, 3)
