"""The kernels' threads are PyTorch's, as many as torch.set_num_threads says, whichever thread calls them."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="the threads are counted in /proc")
@pytest.mark.parametrize("caller", ["main", "another"])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads(cpu_kernels, threads, caller):
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(threads), caller],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"CSHAM_KERNELS": "cpu", "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split() == [str(threads - 1)], done.stderr
